// What DPF has to know about the plug-in.
#ifndef DISTRHO_PLUGIN_INFO_H_INCLUDED
#define DISTRHO_PLUGIN_INFO_H_INCLUDED

#define DISTRHO_PLUGIN_BRAND "selva-deploy"
#define DISTRHO_PLUGIN_NAME "SelVA Stem"
#define DISTRHO_PLUGIN_URI "urn:selva-deploy:stem"
#define DISTRHO_PLUGIN_CLAP_ID "selva-deploy.stem"
#define DISTRHO_PLUGIN_CLAP_FEATURES "instrument", "stereo"
#define DISTRHO_PLUGIN_LV2_CATEGORY "lv2:GeneratorPlugin"
// Most hosts give a plug-in without inputs a place only among the instruments.
#define DISTRHO_PLUGIN_VST3_CATEGORIES "Instrument|Generator|Stereo"

#define DISTRHO_PLUGIN_HAS_UI 0
#define DISTRHO_PLUGIN_IS_RT_SAFE 1
#define DISTRHO_PLUGIN_NUM_INPUTS 0
#define DISTRHO_PLUGIN_NUM_OUTPUTS 2
#define DISTRHO_PLUGIN_WANT_TIMEPOS 1
#define DISTRHO_PLUGIN_WANT_STATE 1
#define DISTRHO_PLUGIN_WANT_FULL_STATE 1

enum Parameters { kGenerate, kSeed, kStatus, kProgress, kParameterCount };

#endif
