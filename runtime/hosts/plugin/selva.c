#define SELVA_IMPLEMENTATION
#include "../c/selva.h"
