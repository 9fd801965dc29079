/* A client of selva-worker in one file, for C99 and C++ on POSIX systems. It is not there for Windows yet.

   In one source file, before any other #include:

       #define SELVA_IMPLEMENTATION
       #include "selva.h"

   The worker is a child process, so a crash of the model is never one of the host, and it leaves when the host does.

       const char *command[] = {"selva-worker", "--stdio", NULL}, *prompts[] = {"dog barking"};
       selva *worker = selva_start(command);
       selva_request request = {0};
       request.video = "/films/street.mp4", request.out = "/films/stems";
       request.prompts = prompts, request.prompt_count = 1;
       int job = selva_submit(worker, &request);
       ... selva_poll(worker) in the host's idle function, until selva_job_of(worker, job)->state is SELVA_DONE;
       selva_slot_put(&slot, selva_take(worker, job, 0));

   One thread at a time may use a `selva`. No function waits for the worker but `selva_close`, which takes a second at
   most; so a thread that draws windows may call them. The audio thread calls `selva_slot_enter` and `selva_slot_leave`
   and nothing else: they neither allocate, nor lock, nor wait. */
#ifndef SELVA_H
#define SELVA_H

#ifdef _WIN32
#error "selva.h is not there for Windows yet"
#endif
#if defined(SELVA_IMPLEMENTATION) && defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE 1 /* closes the host's descriptors in the worker */
#elif defined(SELVA_IMPLEMENTATION) && !defined(__APPLE__) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L
#endif
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { SELVA_PROTOCOL = 1, SELVA_MAX_JOBS = 64, SELVA_MAX_STEMS = 4096, SELVA_MAX_LINE = 4 << 20, SELVA_TEXT = 512 };
#define SELVA_MAX_FRAMES ((size_t)1 << 28) /* of a job's stems together: 1 GiB of memory, 93 minutes at 48 kHz */
#ifndef SELVA_TIMEOUT_S
#define SELVA_TIMEOUT_S 30.0 /* a worker that does not answer for so long is ended */
#endif

/* Mono sound in [-1, 1]. Nobody changes it once it was put into a slot. */
typedef struct selva_audio {
    float *samples;
    size_t frames;
    int sample_rate_hz;
    struct selva_audio *next_; /* private, as all names that end so */
    unsigned turn_;
} selva_audio;

/* New silence, for a host that computes sound itself, as when it resamples. NULL if memory is short. */
selva_audio *selva_audio_new(size_t frames, int sample_rate_hz);
void selva_audio_free(selva_audio *audio);

/* Read a mono WAV file of 16, 24 or 32 bits or 32-bit floats, while the caller waits. Return NULL and say why in `why`,
   which has SELVA_TEXT bytes, if that is not possible or a sample is not a finite number. */
selva_audio *selva_read_wav(const char *path, char *why);

/* Where one thread leaves sound for one audio thread. Zeros are an empty slot. */
typedef struct selva_slot {
    selva_audio *current_, *retired_;
    unsigned turn_;
} selva_slot;

/* Replace the sound, which the slot owns from now on; NULL is silence. The old one is freed as soon as the audio thread
   has left it: here, or in a later `put` or `collect`. */
void selva_slot_put(selva_slot *slot, selva_audio *audio);
void selva_slot_collect(selva_slot *slot);

/* For the audio thread: the sound, or NULL. It stays until `selva_slot_leave`, which must follow in the same block. */
const selva_audio *selva_slot_enter(selva_slot *slot);
void selva_slot_leave(selva_slot *slot);

/* What to generate. Zeros and NULL mean the worker's default; `video`, `out` and one prompt are needed. Texts are
   UTF-8, paths absolute. `out` must exist. The worker may read the video's folder and write to `out`. */
typedef struct selva_request {
    const char *video, *out, *negative;
    const char *const *prompts;
    size_t prompt_count;
    double start_s, duration_s;
    long long seed;
    int takes, steps, sample_rate_hz;
    const char *key; /* a name for this work, which never runs twice: it can be submitted again after a crash */
    const char *quality; /* "best", or "draft" if the model has a student: 4 steps instead of 25 */
} selva_request;

typedef struct selva_stem {
    char *prompt, *file;
    int take, sample_rate_hz;
    long long seed;
    size_t frames;
    selva_audio *audio; /* NULL once it was taken */
} selva_stem;

typedef enum selva_state {
    SELVA_QUEUED,
    SELVA_RUNNING,
    SELVA_WRITING,
    SELVA_LOADING, /* the stems' files are being read */
    SELVA_DONE,
    SELVA_FAILED,
    SELVA_CANCELLED,
    SELVA_INTERRUPTED /* states in which a job stays */
} selva_state;

typedef struct selva_job {
    int number;
    selva_state state;
    char phase[32];           /* what runs now, or "" */
    double fraction;          /* of the phase, 0 to 1, or -1 while nobody can know it */
    char message[SELVA_TEXT]; /* why it failed or was interrupted */
    char notices[2048];       /* lines that the user should read, such as the licence of the weights */
    selva_stem *stems;        /* once it is done: each prompt's takes in turn */
    size_t stem_count;
    char id_[64], *folder_;
    long long revision_;
    int cancel_;
    size_t loaded_;
} selva_job;

typedef enum selva_life { SELVA_STARTING, SELVA_READY, SELVA_GONE } selva_life;
typedef struct selva selva;

/* Start a worker: `command` ends with NULL and has "--stdio". Return NULL only if memory is short; a worker that cannot
   be started is SELVA_GONE. */
selva *selva_start(const char *const *command);
/* Hear and tell what there is to hear and tell, and read a part of a finished stem. Return whether anything came. */
int selva_poll(selva *worker);
selva_life selva_life_of(const selva *worker);
/* Why the worker is gone, or "". */
const char *selva_error(const selva *worker);
/* Queue a request and return its number, or 0 and say why in `why`, which has SELVA_TEXT bytes. */
int selva_submit(selva *worker, const selva_request *request, char *why);
/* The job, or NULL. It stays in its place until `selva_forget` or `selva_close`; `selva_poll` changes it. */
const selva_job *selva_job_of(const selva *worker, int number);
void selva_cancel(selva *worker, int number);
/* Take the sound of a stem of a job that is done. The caller owns it. NULL if it was taken. */
selva_audio *selva_take(selva *worker, int number, size_t stem);
/* Free a job. One that runs is cancelled. */
void selva_forget(selva *worker, int number);
/* End the worker and free everything, in a second at most: one that does not leave is killed. NULL does nothing. */
void selva_close(selva *worker);

#ifdef __cplusplus
}
#endif
#endif /* SELVA_H */

#if defined(SELVA_IMPLEMENTATION) && !defined(SELVA_IMPLEMENTED)
#define SELVA_IMPLEMENTED
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0 /* macOS: SO_NOSIGPIPE is set instead */
#endif
#ifdef __APPLE__
#include <crt_externs.h>
#define environ (*_NSGetEnviron()) /* a plug-in there has no `environ` */
#endif
#ifdef __cplusplus
extern "C" {
#endif
#ifndef __APPLE__
extern char **environ;
#endif

/* ---- Text ---- */

/* Length of the valid UTF-8 character at p, or 0. */
static size_t selva__utf8(const char *text) {
    const unsigned char *p = (const unsigned char *)text;
    size_t length = p[0] < 0x80 ? 1 : p[0] >= 0xC2 && p[0] < 0xE0 ? 2 : p[0] >= 0xE0 && p[0] < 0xF0 ? 3 : 4, k;
    if (length == 4 && (p[0] < 0xF0 || p[0] > 0xF4)) return 0;
    for (k = 1; k < length; k++)
        if ((p[k] & 0xC0) != 0x80) return 0;
    if (p[0] == 0xE0 && p[1] < 0xA0) return 0; /* too long a form */
    if (p[0] == 0xED && p[1] > 0x9F) return 0; /* a surrogate */
    if (p[0] == 0xF0 && p[1] < 0x90) return 0;
    if (p[0] == 0xF4 && p[1] > 0x8F) return 0;
    return length;
}

static int selva__is_utf8(const char *text) {
    size_t length;
    for (; *text; text += length)
        if (!(length = selva__utf8(text))) return 0;
    return 1;
}

/* Write a line into `to`, without a broken character at its end. */
static void selva__say(char *to, size_t size, const char *format, ...) {
    va_list arguments;
    char *p = to;
    size_t length;
    va_start(arguments, format);
    vsnprintf(to, size, format, arguments);
    va_end(arguments);
    while (*p && (length = selva__utf8(p))) p += length;
    *p = 0;
}

/* ---- JSON: `skip` checks a text once, the others walk through what was checked. Numbers ignore the locale. ---- */

enum { SELVA__DEPTH = 32 };

static const char *selva__space(const char *p) {
    while (*p == ' ' || *p == '\t' || *p == '\n' || *p == '\r') p++;
    return p;
}

static int selva__hex(const char *p) {
    int value = 0, k;
    for (k = 0; k < 4; k++) {
        static const char digits[] = "0123456789abcdefABCDEF";
        const char *found = p[k] ? strchr(digits, p[k]) : NULL;
        if (!found) return -1;
        value = value * 16 + (int)(found - digits) - (found - digits < 16 ? 0 : 6);
    }
    return value;
}

static const char *selva__skip_text(const char *p) {
    for (p++; *p != '"';) {
        size_t length;
        if ((unsigned char)*p < 0x20) return NULL;
        if (*p == '\\') {
            if (!p[1] || !strchr("\"\\/bfnrtu", p[1])) return NULL;
            if (p[1] == 'u' && selva__hex(p + 2) < 0) return NULL;
            p += p[1] == 'u' ? 6 : 2;
        } else {
            if (!(length = selva__utf8(p))) return NULL;
            p += length;
        }
    }
    return p + 1;
}

static const char *selva__skip_digits(const char *p) {
    if (*p < '0' || *p > '9') return NULL;
    while (*p >= '0' && *p <= '9') p++;
    return p;
}

static const char *selva__skip_number(const char *p) {
    if (*p == '-') p++;
    p = *p == '0' ? p + 1 : selva__skip_digits(p);
    if (p && *p == '.') p = selva__skip_digits(p + 1);
    if (p && (*p == 'e' || *p == 'E')) p = selva__skip_digits(p + 1 + (p[1] == '+' || p[1] == '-'));
    return p;
}

/* The end of the value at p, or NULL if it is none. */
static const char *selva__skip(const char *p, int depth) {
    char close = *p == '{' ? '}' : ']';
    if (*p == '"') return selva__skip_text(p);
    if (!strncmp(p, "true", 4) || !strncmp(p, "null", 4)) return p + 4;
    if (!strncmp(p, "false", 5)) return p + 5;
    if (*p != '{' && *p != '[') return selva__skip_number(p);
    if (!depth) return NULL;
    p = selva__space(p + 1);
    if (*p == close) return p + 1;
    for (;;) {
        if (close == '}') {
            if (*p != '"' || !(p = selva__skip_text(p)) || *(p = selva__space(p)) != ':') return NULL;
            p = selva__space(p + 1);
        }
        if (!(p = selva__skip(p, depth - 1))) return NULL;
        p = selva__space(p);
        if (*p == close) return p + 1;
        if (*p != ',') return NULL;
        p = selva__space(p + 1);
    }
}

static const char *selva__next(const char *p) { /* what follows a value in its array or object */
    p = selva__space(selva__skip(p, SELVA__DEPTH));
    return *p == ',' ? selva__space(p + 1) : p;
}

/* The value of this name in the object at p, or NULL. */
static const char *selva__get(const char *p, const char *name) {
    size_t length = strlen(name);
    if (!p || *p != '{') return NULL;
    for (p = selva__space(p + 1); *p == '"';) {
        const char *key = p;
        p = selva__space(selva__space(selva__skip_text(p)) + 1);
        if (!strncmp(key + 1, name, length) && key[length + 1] == '"') return p;
        p = selva__next(p);
    }
    return NULL;
}

static size_t selva__encode(unsigned long code, char *to) {
    if (code < 0x80) {
        to[0] = (char)code;
        return 1;
    }
    if (code < 0x800) {
        to[0] = (char)(0xC0 | code >> 6);
        to[1] = (char)(0x80 | (code & 63));
        return 2;
    }
    if (code < 0x10000) {
        to[0] = (char)(0xE0 | code >> 12);
        to[1] = (char)(0x80 | (code >> 6 & 63));
        to[2] = (char)(0x80 | (code & 63));
        return 3;
    }
    to[0] = (char)(0xF0 | code >> 18);
    to[1] = (char)(0x80 | (code >> 12 & 63));
    to[2] = (char)(0x80 | (code >> 6 & 63));
    to[3] = (char)(0x80 | (code & 63));
    return 4;
}

/* Copy the text at p into `to`, as much as it holds, with U+FFFD for what C or UTF-8 cannot hold. Return whether p is
   a text. */
static int selva__text(const char *p, char *to, size_t size) {
    size_t used = 0;
    to[0] = 0;
    if (!p || *p != '"') return 0;
    for (p++; *p != '"';) {
        char one[4];
        size_t length = 1;
        if (*p != '\\') {
            length = selva__utf8(p);
            memcpy(one, p, length);
            p += length;
        } else if (p[1] == 'u') {
            unsigned long code = (unsigned long)selva__hex(p + 2);
            p += 6;
            if (code >= 0xD800 && code < 0xDC00 && p[0] == '\\' && p[1] == 'u') {
                unsigned long low = (unsigned long)selva__hex(p + 2);
                if (low >= 0xDC00 && low < 0xE000) {
                    code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
                    p += 6;
                }
            }
            length = selva__encode(!code || (code >= 0xD800 && code < 0xE000) ? 0xFFFD : code, one);
        } else {
            static const char names[] = "bfnrt", values[] = "\b\f\n\r\t";
            const char *found = strchr(names, p[1]);
            one[0] = found ? values[found - names] : p[1];
            p += 2;
        }
        if (used + length + 1 > size) break;
        memcpy(to + used, one, length);
        to[used += length] = 0;
    }
    return 1;
}

static char *selva__new_text(const char *p) {
    size_t size = p && *p == '"' ? (size_t)(selva__skip_text(p) - p) + 1 : 0;
    char *text = size ? (char *)malloc(size) : NULL;
    if (text) selva__text(p, text, size);
    return text;
}

static int selva__is(const char *p, const char *text) {
    size_t length = strlen(text);
    return p && *p == '"' && !strncmp(p + 1, text, length) && p[length + 1] == '"';
}

/* A number from 0 to 1, or -1. */
static double selva__fraction(const char *p) {
    double value = 0, unit = 1;
    if (!p || *p < '0' || *p > '9') return -1;
    for (; *p >= '0' && *p <= '9'; p++) value = value * 10 + (*p - '0');
    if (*p == '.')
        for (p++; *p >= '0' && *p <= '9'; p++) value += (unit /= 10) * (*p - '0');
    if (*p == 'e' || *p == 'E') return p[1] == '-' ? 0 : -1; /* Python writes numbers below 0.0001 so */
    return value <= 1 ? value : -1;
}

/* Read a whole number of at most 18 digits. Return whether p is one. */
static int selva__whole(const char *p, long long *to) {
    int minus = p && *p == '-', digits = 0;
    if (!p) return 0;
    for (*to = 0, p += minus; *p >= '0' && *p <= '9' && digits < 18; p++, digits++) *to = *to * 10 + (*p - '0');
    if (minus) *to = -*to;
    return digits > 0 && (*p < '0' || *p > '9') && *p != '.' && *p != 'e' && *p != 'E';
}

/* ---- Sound ---- */

selva_audio *selva_audio_new(size_t frames, int sample_rate_hz) {
    selva_audio *audio;
    if (frames > SELVA_MAX_FRAMES || !(audio = (selva_audio *)calloc(1, sizeof *audio + frames * sizeof(float))))
        return NULL;
    audio->samples = (float *)(void *)(audio + 1);
    audio->frames = frames;
    audio->sample_rate_hz = sample_rate_hz;
    return audio;
}

void selva_audio_free(selva_audio *audio) { free(audio); }

void selva_slot_put(selva_slot *slot, selva_audio *audio) {
    selva_audio *old = __atomic_exchange_n(&slot->current_, audio, __ATOMIC_SEQ_CST);
    if (old) {
        old->turn_ = __atomic_load_n(&slot->turn_, __ATOMIC_SEQ_CST);
        old->next_ = slot->retired_;
        slot->retired_ = old;
    }
    selva_slot_collect(slot);
}

/* The turn is odd while the audio thread is inside. It can only be in an old sound if it was inside when that was
   replaced, and has not left since. */
void selva_slot_collect(selva_slot *slot) {
    unsigned turn = __atomic_load_n(&slot->turn_, __ATOMIC_SEQ_CST);
    selva_audio **link = &slot->retired_, *old;
    while ((old = *link) != NULL) {
        if (old->turn_ % 2 && old->turn_ == turn) {
            link = &old->next_;
        } else {
            *link = old->next_;
            selva_audio_free(old);
        }
    }
}

const selva_audio *selva_slot_enter(selva_slot *slot) {
    __atomic_add_fetch(&slot->turn_, 1, __ATOMIC_SEQ_CST);
    return __atomic_load_n(&slot->current_, __ATOMIC_SEQ_CST);
}

void selva_slot_leave(selva_slot *slot) { __atomic_add_fetch(&slot->turn_, 1, __ATOMIC_SEQ_CST); }

/* ---- WAV files ---- */

typedef struct selva__wav {
    int file, bits, is_float;
    size_t done;
    selva_audio *audio;
} selva__wav;

static int selva__read(int file, void *to, size_t bytes) {
    while (bytes) {
        ssize_t got = read(file, to, bytes);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return 0;
        to = (char *)to + got;
        bytes -= (size_t)got;
    }
    return 1;
}

static uint32_t selva__u32(const unsigned char *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static unsigned selva__u16(const unsigned char *p) { return p[0] | (unsigned)p[1] << 8; }

static const char *selva__wav_format(selva__wav *wav, const unsigned char *format, uint32_t size, uint32_t *rate) {
    unsigned kind = selva__u16(format);
    if (kind == 0xFFFE && size >= 26) kind = selva__u16(format + 24); /* the extensible form names the kind later */
    wav->bits = (int)selva__u16(format + 14);
    wav->is_float = kind == 3;
    *rate = selva__u32(format + 4);
    if (selva__u16(format + 2) != 1) return "it is not mono";
    if (!*rate || *rate > 768000) return "its sample rate makes no sense";
    if (kind == 3 ? wav->bits != 32 : kind != 1 || (wav->bits != 16 && wav->bits != 24 && wav->bits != 32))
        return "it is not PCM of 16, 24 or 32 bits or 32-bit floats";
    return NULL;
}

/* Read chunks up to the samples. Return what is wrong, or NULL. */
static const char *selva__wav_header(selva__wav *wav) {
    unsigned char head[12], format[40];
    uint32_t rate = 0, size, used;
    int chunk;
    struct stat status;
    const char *wrong;
    if (fstat(wav->file, &status) || !S_ISREG(status.st_mode)) return "it is not a file";
    if (!selva__read(wav->file, head, 12) || memcmp(head, "RIFF", 4) || memcmp(head + 8, "WAVE", 4))
        return "it is not a WAV file";
    for (chunk = 0; chunk < 1000 && selva__read(wav->file, head, 8); chunk++) {
        size = selva__u32(head + 4);
        if (!memcmp(head, "data", 4)) {
            off_t left = status.st_size - lseek(wav->file, 0, SEEK_CUR);
            if (!rate) return "its samples come before their format";
            if (left < (off_t)size) return "it is cut off";
            if (size % (unsigned)(wav->bits / 8) || size / (unsigned)(wav->bits / 8) > SELVA_MAX_FRAMES)
                return "it is too long";
            wav->audio = selva_audio_new(size / (unsigned)(wav->bits / 8), (int)rate);
            return wav->audio ? NULL : "memory is short";
        }
        used = 0;
        if (!memcmp(head, "fmt ", 4)) {
            used = size < sizeof format ? size : (uint32_t)sizeof format;
            if (size < 16 || !selva__read(wav->file, format, used)) return "it is cut off";
            if ((wrong = selva__wav_format(wav, format, size, &rate)) != NULL) return wrong;
        }
        if (lseek(wav->file, (off_t)size + size % 2 - (off_t)used, SEEK_CUR) < 0) return "it is cut off";
    }
    return "it has no samples";
}

static const char *selva__wav_open(selva__wav *wav, const char *path) {
    memset(wav, 0, sizeof *wav);
    wav->file = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC); /* a pipe of this name must not make us wait */
    return wav->file < 0 ? strerror(errno) : selva__wav_header(wav);
}

/* Read more frames. Return what is wrong, or NULL. */
static const char *selva__wav_more(selva__wav *wav) {
    unsigned char bytes[16384 * 4], top[4] = {0, 0, 0, 0};
    size_t size = (size_t)wav->bits / 8, count = wav->audio->frames - wav->done, k;
    float *to = wav->audio->samples + wav->done;
    if (count > 16384) count = 16384;
    if (!selva__read(wav->file, bytes, count * size)) return "it is cut off";
    for (k = 0; k < count; k++) {
        const unsigned char *p = bytes + k * size;
        uint32_t word;
        memcpy(top + 4 - size, p, size); /* the sample in the highest bits */
        word = selva__u32(top);
        if (wav->is_float) {
            if ((word >> 23 & 255) == 255) return "a sample is not a finite number";
            memcpy(to + k, &word, 4);
        } else {
            to[k] = (float)((word & 0x80000000u ? (double)word - 4294967296.0 : (double)word) / 2147483648.0);
        }
    }
    wav->done += count;
    return NULL;
}

static void selva__wav_close(selva__wav *wav) {
    if (wav->file >= 0) close(wav->file);
    selva_audio_free(wav->audio);
    wav->file = -1;
    wav->audio = NULL;
}

selva_audio *selva_read_wav(const char *path, char *why) {
    selva__wav wav;
    selva_audio *audio = NULL;
    const char *wrong = selva__wav_open(&wav, path);
    while (!wrong && wav.done < wav.audio->frames) wrong = selva__wav_more(&wav);
    if (wrong) {
        selva__say(why, SELVA_TEXT, "%s cannot be read: %s", path, wrong);
    } else {
        audio = wav.audio;
        wav.audio = NULL;
    }
    selva__wav_close(&wav);
    return audio;
}

/* ---- The connection ---- */

enum { SELVA__INITIALIZE, SELVA__SUBMIT, SELVA__GET, SELVA__CANCEL, SELVA__MAX_CALLS = 256, SELVA__MAX_OUT = 1 << 20 };
enum { SELVA__STEP = 1 << 18 }; /* bytes that one poll reads */

typedef struct selva__call {
    int id, what, job;
} selva__call;

struct selva {
    int socket;
    pid_t process;
    selva_life life;
    char error[SELVA_TEXT];
    double ended_s;            /* when its output ended, or 0 */
    double polled_s, waited_s; /* the last poll, and how long the first call has been waiting for its answer */
    char *in, *out;
    size_t in_used, in_size, out_used;
    selva__call calls[SELVA__MAX_CALLS];
    int call_count, last_id, last_job;
    selva_job *jobs[SELVA_MAX_JOBS];
    selva__wav wav; /* the stem that is being read, of the job `wav_job` */
    int wav_job;
};

static double selva__now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int selva__has_ended(const selva_job *job) { return job->state >= SELVA_DONE; }

static void selva__end(selva_job *job, selva_state state, const char *message) {
    job->state = state;
    job->fraction = -1;
    job->phase[0] = 0;
    if (job->message != message) selva__say(job->message, sizeof job->message, "%s", message);
}

static selva_job *selva__job(const selva *s, int number) {
    int k;
    for (k = 0; k < SELVA_MAX_JOBS; k++)
        if (number && s->jobs[k] && s->jobs[k]->number == number) return s->jobs[k];
    return NULL;
}

/* Collect the child if it has ended. Return whether it has. */
static int selva__reap(selva *s, int *status) {
    pid_t got;
    if (s->process <= 0) return 1;
    do got = waitpid(s->process, status, WNOHANG);
    while (got < 0 && errno == EINTR);
    if (!got) return 0;
    if (got < 0) *status = -1; /* the host collects all children itself */
    s->process = 0;
    return 1;
}

/* The worker is of no more use: kill it. Its engine leaves with it. */
static void selva__gone(selva *s, const char *why) {
    int k, status;
    if (s->life == SELVA_GONE) return;
    s->life = SELVA_GONE;
    selva__say(s->error, sizeof s->error, "%s", why);
    if (s->socket >= 0) close(s->socket);
    s->socket = -1;
    if (s->process > 0 && !selva__reap(s, &status)) kill(s->process, SIGKILL);
    for (k = 0; k < SELVA_MAX_JOBS; k++)
        if (s->jobs[k] && s->jobs[k]->state < SELVA_LOADING) selva__end(s->jobs[k], SELVA_INTERRUPTED, s->error);
    s->call_count = 0;
}

/* The output has ended. The exit code comes a moment later; a worker that goes on without an output is killed. */
static void selva__ended(selva *s) {
    int status = 0;
    char why[80] = "the worker is gone";
    if (!selva__reap(s, &status)) {
        if (selva__now_s() - s->ended_s > 0.5) selva__gone(s, "the worker closed its output");
        return;
    }
    if (status != -1 && WIFEXITED(status))
        snprintf(why, sizeof why, "the worker ended with exit code %d", WEXITSTATUS(status));
    if (status != -1 && WIFSIGNALED(status))
        snprintf(why, sizeof why, "the worker was ended by signal %d", WTERMSIG(status));
    selva__gone(s, why);
}

/* ---- Calls ---- */

typedef struct selva__line {
    char *text;
    size_t used, size;
    int failed;
} selva__line;

static void selva__put(selva__line *line, const char *text, size_t length) {
    if (line->used + length > line->size && !line->failed) {
        size_t size = 2 * (line->used + length) + 256;
        char *grown = size > 2 * SELVA__MAX_OUT ? NULL : (char *)realloc(line->text, size);
        if (grown) line->text = grown, line->size = size;
        line->failed = !grown;
    }
    if (line->failed) return;
    memcpy(line->text + line->used, text, length);
    line->used += length;
}

static void selva__puts(selva__line *line, const char *text) { selva__put(line, text, strlen(text)); }

static void selva__put_text(selva__line *line, const char *text) {
    char code[8];
    selva__puts(line, "\"");
    for (; *text; text++) {
        if ((unsigned char)*text < 0x20 || *text == '"' || *text == '\\') {
            snprintf(code, sizeof code, "\\u%04x", (unsigned)(unsigned char)*text);
            selva__puts(line, code);
        } else {
            selva__put(line, text, 1);
        }
    }
    selva__puts(line, "\"");
}

static void selva__put_whole(selva__line *line, const char *name, long long value) {
    char text[24];
    snprintf(text, sizeof text, "%lld", value);
    selva__puts(line, name);
    selva__puts(line, text);
}

/* Seconds, in microseconds: printf would write a comma where the host's locale has one. */
static void selva__put_seconds(selva__line *line, const char *name, double value) {
    char text[40];
    long long us = (long long)(value * 1e6 + 0.5);
    snprintf(text, sizeof text, "%lld.%06lld", us / 1000000, us % 1000000);
    selva__puts(line, name);
    selva__puts(line, text);
}

static selva__line selva__begin(selva *s, const char *method) {
    selva__line line = {NULL, 0, 0, 0};
    selva__put_whole(&line, "{\"jsonrpc\":\"2.0\",\"id\":", s->last_id + 1);
    selva__puts(&line, ",\"method\":\"");
    selva__puts(&line, method);
    selva__puts(&line, "\",\"params\":{");
    return line;
}

/* Queue a call and free its line. Return whether it was queued. */
static int selva__call_worker(selva *s, selva__line *line, int what, int job) {
    int ok;
    char *grown;
    selva__puts(line, "}}\n");
    ok = !line->failed && s->life != SELVA_GONE && s->call_count < SELVA__MAX_CALLS &&
         s->out_used + line->used <= SELVA__MAX_OUT;
    if (ok && (grown = (char *)realloc(s->out, s->out_used + line->used)) != NULL) {
        s->out = grown;
        memcpy(s->out + s->out_used, line->text, line->used);
        s->out_used += line->used;
        s->calls[s->call_count].id = ++s->last_id;
        s->calls[s->call_count].what = what;
        s->calls[s->call_count++].job = job;
    } else {
        ok = 0;
    }
    free(line->text);
    return ok;
}

static int selva__initialize(selva *s, const char *const *folders, size_t count, int job) {
    selva__line line = selva__begin(s, "initialize");
    size_t k;
    selva__put_whole(&line, "\"protocol\":", SELVA_PROTOCOL);
    selva__puts(&line, ",\"folders\":[");
    for (k = 0; k < count; k++) {
        if (k) selva__puts(&line, ",");
        selva__put_text(&line, folders[k]);
    }
    selva__puts(&line, "]");
    return selva__call_worker(s, &line, SELVA__INITIALIZE, job);
}

static void selva__about_job(selva *s, const char *method, int what, const char *id, int number) {
    selva__line line = selva__begin(s, method);
    selva__puts(&line, "\"job\":");
    selva__put_text(&line, id);
    if (!selva__call_worker(s, &line, what, number)) selva__gone(s, "the worker does not read");
}

static int selva__submit(selva *s, const selva_request *r, const char *video, const selva_job *job) {
    selva__line line = selva__begin(s, "job.submit");
    size_t k;
    if (r->key) {
        selva__puts(&line, "\"key\":");
        selva__put_text(&line, r->key);
        selva__puts(&line, ",");
    }
    selva__puts(&line, "\"request\":{\"video\":");
    selva__put_text(&line, video);
    selva__puts(&line, ",\"out\":");
    selva__put_text(&line, job->folder_);
    selva__puts(&line, ",\"prompts\":[");
    for (k = 0; k < r->prompt_count; k++) {
        if (k) selva__puts(&line, ",");
        selva__put_text(&line, r->prompts[k]);
    }
    selva__puts(&line, "]");
    if (r->negative) {
        selva__puts(&line, ",\"negative\":");
        selva__put_text(&line, r->negative);
    }
    if (r->quality) {
        selva__puts(&line, ",\"quality\":");
        selva__put_text(&line, r->quality);
    }
    if (r->start_s > 0) selva__put_seconds(&line, ",\"start_s\":", r->start_s);
    if (r->duration_s > 0) selva__put_seconds(&line, ",\"duration_s\":", r->duration_s);
    if (r->takes) selva__put_whole(&line, ",\"takes\":", r->takes);
    if (r->steps) selva__put_whole(&line, ",\"steps\":", r->steps);
    if (r->sample_rate_hz) selva__put_whole(&line, ",\"sample_rate_hz\":", r->sample_rate_hz);
    selva__put_whole(&line, ",\"seed\":", r->seed);
    selva__puts(&line, "}");
    return selva__call_worker(s, &line, SELVA__SUBMIT, job->number);
}

/* What is wrong with a request, or NULL. */
static const char *selva__wrong(const selva_request *r) {
    size_t k;
    if (!r->video || !r->out || !r->prompt_count || !r->prompts)
        return "the request needs a video, a folder and a prompt";
    if (r->video[0] != '/' || r->out[0] != '/') return "the paths must be absolute";
    if (!(r->start_s >= 0 && r->start_s < 1e9 && r->duration_s >= 0 && r->duration_s < 1e9))
        return "the times make no sense";
    for (k = 0; k < r->prompt_count; k++)
        if (!r->prompts[k] || !selva__is_utf8(r->prompts[k])) return "a prompt is not UTF-8";
    if ((r->negative && !selva__is_utf8(r->negative)) || (r->key && !selva__is_utf8(r->key)) ||
        (r->quality && !selva__is_utf8(r->quality)))
        return "a text is not UTF-8";
    return NULL;
}

static void selva__free_job(selva_job *job) {
    size_t k;
    for (k = 0; k < job->stem_count; k++) {
        free(job->stems[k].prompt);
        free(job->stems[k].file);
        selva_audio_free(job->stems[k].audio);
    }
    free(job->stems);
    free(job->folder_);
    free(job);
}

static int selva__send_job(selva *s, const selva_request *request, selva_job *job, char *video, char *why) {
    const char *folders[2];
    char *name = strrchr(video, '/');
    int ok;
    if (!selva__is_utf8(video) || !selva__is_utf8(job->folder_)) {
        selva__say(why, SELVA_TEXT, "a path is not UTF-8");
        return 0;
    }
    *name = 0; /* for a moment, the folder */
    folders[0] = *video ? video : "/";
    folders[1] = job->folder_;
    ok = selva__initialize(s, folders, 2, job->number);
    *name = '/';
    ok = ok && selva__submit(s, request, video, job);
    if (!ok)
        selva__say(why, SELVA_TEXT, "%s",
                   s->life == SELVA_GONE ? s->error : "the request is too long, or the worker does not read");
    return ok;
}

int selva_submit(selva *s, const selva_request *request, char *why) {
    const char *wrong = selva__wrong(request);
    char *video = wrong ? NULL : realpath(request->video, NULL);
    selva_job *job = video ? (selva_job *)calloc(1, sizeof *job) : NULL;
    int place = 0, number = 0;
    why[0] = 0;
    while (place < SELVA_MAX_JOBS && s->jobs[place]) place++;
    if (place == SELVA_MAX_JOBS) wrong = "too many jobs; forget some";
    if (job) job->folder_ = realpath(request->out, NULL);
    if (wrong) {
        selva__say(why, SELVA_TEXT, "%s", wrong);
    } else if (!job || !job->folder_) {
        selva__say(why, SELVA_TEXT, "%s: %s", video ? request->out : request->video, strerror(errno));
    } else {
        job->number = ++s->last_job;
        job->fraction = -1;
        if (selva__send_job(s, request, job, video, why)) {
            s->jobs[place] = job;
            number = job->number;
        }
    }
    if (job && !number) selva__free_job(job);
    free(video);
    return number;
}

/* ---- Answers ---- */

static const char *const selva__states[] = {"queued", "running", "writing",   "",
                                            "done",   "failed",  "cancelled", "interrupted"};

/* Fill a stem from the report. Return whether it makes sense. */
static int selva__stem(selva_stem *stem, const char *p, const selva_job *job) {
    long long take, rate, frames;
    size_t length = strlen(job->folder_);
    stem->prompt = selva__new_text(selva__get(p, "prompt"));
    stem->file = selva__new_text(selva__get(p, "file"));
    if (!stem->prompt || !stem->file) return 0;
    if (!selva__whole(selva__get(p, "take"), &take) || !selva__whole(selva__get(p, "sample_rate_hz"), &rate)) return 0;
    if (!selva__whole(selva__get(p, "seed"), &stem->seed) || !selva__whole(selva__get(p, "samples"), &frames)) return 0;
    if (take < 1 || take > 1000000 || rate < 1 || rate > 768000 || frames < 1 || frames > (long long)SELVA_MAX_FRAMES)
        return 0;
    stem->take = (int)take;
    stem->sample_rate_hz = (int)rate;
    stem->frames = (size_t)frames;
    return !strncmp(stem->file, job->folder_, length) && stem->file[length] == '/' &&
           !strchr(stem->file + length + 1, '/');
}

static void selva__report(selva_job *job, const char *result) {
    const char *p = selva__get(result, "stems");
    size_t frames = 0;
    selva__end(job, SELVA_FAILED, "the worker's report of the stems makes no sense");
    if (!p || *p != '[' || !(job->stems = (selva_stem *)calloc(SELVA_MAX_STEMS, sizeof *job->stems))) return;
    for (p = selva__space(p + 1); *p != ']'; p = selva__next(p)) {
        if (job->stem_count == SELVA_MAX_STEMS || !selva__stem(&job->stems[job->stem_count++], p, job)) return;
        frames += job->stems[job->stem_count - 1].frames;
    }
    if (frames > SELVA_MAX_FRAMES) {
        selva__end(job, SELVA_FAILED, "the stems are too long to keep in memory");
    } else if (job->stem_count) {
        job->message[0] = 0;
        job->state = SELVA_LOADING;
    }
}

static void selva__notices(selva_job *job, const char *p) {
    size_t used = 0;
    if (!p || *p != '[') return;
    for (p = selva__space(p + 1); *p != ']' && used + 2 < sizeof job->notices; p = selva__next(p)) {
        if (used) job->notices[used++] = '\n';
        selva__text(selva__get(p, "text"), job->notices + used, sizeof job->notices - used);
        used += strlen(job->notices + used);
    }
}

/* Take over a job as the worker sees it. Return what is wrong with it, or NULL. */
static const char *selva__seen(selva_job *job, const char *p) {
    const char *progress = selva__get(p, "progress"), *state = selva__get(p, "state");
    long long revision;
    int k = 0;
    if (!selva__is(selva__get(p, "id"), job->id_)) return "the worker answered about another job";
    while (k < 8 && (k == SELVA_LOADING || !selva__is(state, selva__states[k]))) k++;
    if (k == 8 || !selva__whole(selva__get(p, "revision"), &revision)) return "the worker told no state of a job";
    if (job->state >= SELVA_LOADING || revision <= job->revision_) return NULL;
    job->revision_ = revision;
    selva__notices(job, selva__get(p, "messages"));
    if (k == SELVA_DONE) {
        selva__report(job, selva__get(p, "result"));
    } else if (k > SELVA_DONE) {
        selva__text(selva__get(selva__get(p, "error"), "message"), job->message, sizeof job->message);
        selva__end(job, (selva_state)k, job->message);
    } else {
        job->state = (selva_state)k;
        selva__text(selva__get(progress, "phase"), job->phase, sizeof job->phase);
        job->fraction = selva__fraction(selva__get(progress, "fraction"));
    }
    return NULL;
}

static const char *selva__refused(selva *s, selva__call call, const char *error) {
    selva_job *job = selva__job(s, call.job);
    char why[SELVA_TEXT];
    if (!selva__text(selva__get(error, "message"), why, sizeof why)) return "the worker gave no reason";
    if (call.what == SELVA__INITIALIZE && !call.job) selva__gone(s, why);
    if (job && !selva__has_ended(job)) selva__end(job, SELVA_FAILED, why);
    return NULL;
}

/* Hear the result of a call. Return what is wrong with it, or NULL. */
static const char *selva__result(selva *s, selva__call call, const char *p) {
    selva_job *job = selva__job(s, call.job);
    char id[sizeof job->id_];
    long long protocol;
    if (call.what == SELVA__INITIALIZE) {
        if (!selva__whole(selva__get(p, "protocol"), &protocol) || protocol != SELVA_PROTOCOL)
            return "the worker speaks another protocol";
        s->life = SELVA_READY;
        return NULL;
    }
    if (call.what != SELVA__SUBMIT) return job ? selva__seen(job, p) : NULL;
    if (!selva__text(selva__get(p, "id"), id, sizeof id) || !id[0]) return "the worker gave a job no name";
    if (job) memcpy(job->id_, id, sizeof id);
    if (!job || job->cancel_)
        selva__about_job(s, "job.cancel", SELVA__CANCEL, id, call.job); /* or it was forgotten */
    else
        selva__about_job(s, "job.get", SELVA__GET, id, call.job); /* it may have changed before we knew its name */
    return NULL;
}

/* Hear one line. Return what is wrong with it, or NULL. */
static const char *selva__line_heard(selva *s, const char *line, size_t length) {
    const char *p = selva__space(line), *end = selva__skip(p, SELVA__DEPTH), *number;
    long long id;
    selva__call call;
    int k;
    if (!end || selva__space(end) != line + length || *p != '{') return "the worker sent what is not JSON";
    if (!selva__is(selva__get(p, "jsonrpc"), "2.0")) return "the worker sent what is not JSON-RPC";
    if (!(number = selva__get(p, "id"))) {
        const char *seen = selva__get(p, "params"), *name = selva__get(seen, "id");
        if (!selva__is(selva__get(p, "method"), "job.changed")) return NULL;
        for (k = 0; k < SELVA_MAX_JOBS; k++)
            if (s->jobs[k] && s->jobs[k]->id_[0] && selva__is(name, s->jobs[k]->id_))
                return selva__seen(s->jobs[k], seen);
        return NULL;
    }
    for (k = 0; k < s->call_count; k++)
        if (selva__whole(number, &id) && id == s->calls[k].id) break;
    if (k == s->call_count) return "the worker answered what nobody asked";
    call = s->calls[k];
    s->waited_s = 0;
    memmove(s->calls + k, s->calls + k + 1, (size_t)(--s->call_count - k) * sizeof *s->calls);
    if (selva__get(p, "error")) return selva__refused(s, call, selva__get(p, "error"));
    if (!selva__get(p, "result")) return "the worker answered nothing";
    return selva__result(s, call, selva__get(p, "result"));
}

/* Hear the whole lines that have arrived since `before` bytes were there. */
static void selva__hear(selva *s, size_t before) {
    size_t begin = 0;
    char *end;
    const char *wrong;
    while (s->life != SELVA_GONE && (end = (char *)memchr(s->in + before, '\n', s->in_used - before)) != NULL) {
        *end = 0;
        if ((wrong = selva__line_heard(s, s->in + begin, (size_t)(end - s->in) - begin)) != NULL) selva__gone(s, wrong);
        before = begin = (size_t)(end - s->in) + 1;
    }
    s->in_used -= begin;
    memmove(s->in, s->in + begin, s->in_used);
}

static int selva__receive(selva *s) {
    size_t before = s->in_used, want = SELVA__STEP;
    ssize_t got;
    char *grown;
    if (s->in_used + want > s->in_size) {
        if (s->in_used > SELVA_MAX_LINE || !(grown = (char *)realloc(s->in, 2 * (s->in_used + want)))) {
            selva__gone(s, "the worker sent a line that is too long");
            return 1;
        }
        s->in = grown;
        s->in_size = 2 * (s->in_used + want);
    }
    got = recv(s->socket, s->in + s->in_used, want, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return 0;
    if (got <= 0) {
        if (s->ended_s <= 0) s->ended_s = selva__now_s();
        selva__ended(s);
        return 1;
    }
    s->in_used += (size_t)got;
    selva__hear(s, before);
    return 1;
}

static void selva__transmit(selva *s) {
    ssize_t sent = send(s->socket, s->out, s->out_used, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent <= 0) return; /* it does not read now, or is gone, as `receive` will see */
    s->out_used -= (size_t)sent;
    memmove(s->out, s->out + sent, s->out_used);
}

/* ---- The stems of a job that is done ---- */

static void selva__load_ended(selva *s, selva_job *job, const char *wrong) {
    if (wrong) {
        char why[SELVA_TEXT];
        selva__say(why, sizeof why, "%s cannot be read: %s", job->stems[job->loaded_].file, wrong);
        selva__end(job, SELVA_FAILED, why);
    } else {
        job->stems[job->loaded_++].audio = s->wav.audio;
        s->wav.audio = NULL;
        if (job->loaded_ == job->stem_count) selva__end(job, SELVA_DONE, "");
    }
    selva__wav_close(&s->wav);
    s->wav_job = 0;
}

/* Read a part of a stem. */
static void selva__load(selva *s, selva_job *job) {
    const selva_stem *stem = &job->stems[job->loaded_];
    const char *wrong = NULL;
    int steps;
    if (!s->wav_job) {
        s->wav_job = job->number;
        wrong = selva__wav_open(&s->wav, stem->file);
        if (!wrong && (s->wav.audio->frames != stem->frames || s->wav.audio->sample_rate_hz != stem->sample_rate_hz))
            wrong = "it is not as the worker reported";
    }
    for (steps = 0; !wrong && steps < 4 && s->wav.done < stem->frames; steps++) wrong = selva__wav_more(&s->wav);
    if (wrong || s->wav.done == stem->frames) selva__load_ended(s, job, wrong);
}

/* ---- What a host calls ---- */

static int selva__spawn(selva *s, const char *const *command, int theirs) {
    posix_spawn_file_actions_t files;
    posix_spawnattr_t how;
    sigset_t none, usual;
    static const int signals[] = {SIGHUP, SIGINT, SIGPIPE, SIGTERM}; /* a host may ignore them, the worker must not */
    size_t k;
    int failed;
    sigemptyset(&none);
    sigemptyset(&usual);
    for (k = 0; k < sizeof signals / sizeof *signals; k++) sigaddset(&usual, signals[k]);
    posix_spawn_file_actions_init(&files);
    posix_spawnattr_init(&how);
    posix_spawn_file_actions_adddup2(&files, theirs, 0);
    posix_spawn_file_actions_adddup2(&files, theirs, 1);
    posix_spawn_file_actions_addopen(&files, 2, "/dev/null", O_WRONLY, 0);
#if defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 34)
    posix_spawn_file_actions_addclosefrom_np(&files, 3);
#endif
    posix_spawnattr_setsigmask(&how, &none);
    posix_spawnattr_setsigdefault(&how, &usual);
    posix_spawnattr_setflags(&how, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    failed = posix_spawnp(&s->process, command[0], &files, &how, (char *const *)(void *)(size_t)command, environ);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&how);
    if (failed) s->process = 0;
    return failed;
}

/* One socket is the child's input and output. Unlike a pipe, it can be written without SIGPIPE if the child is gone. */
static int selva__sockets(int pair[2]) {
#ifdef SOCK_CLOEXEC
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) return errno;
#else
    int one = 1;
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) return errno;
    fcntl(pair[0], F_SETFD, FD_CLOEXEC);
    fcntl(pair[1], F_SETFD, FD_CLOEXEC);
    setsockopt(pair[0], SOL_SOCKET, SO_NOSIGPIPE, &one, sizeof one);
#endif
    return 0;
}

selva *selva_start(const char *const *command) {
    selva *s = (selva *)calloc(1, sizeof *s);
    int pair[2] = {-1, -1}, failed;
    char why[SELVA_TEXT];
    if (!s) return NULL;
    s->wav.file = -1;
    if (!(failed = selva__sockets(pair))) failed = selva__spawn(s, command, pair[1]);
    s->socket = pair[0];
    if (pair[1] >= 0) close(pair[1]);
    if (failed) {
        selva__say(why, sizeof why, "%s cannot be started: %s", command[0], strerror(failed));
        selva__gone(s, why);
    } else if (!selva__initialize(s, NULL, 0, 0)) {
        selva__gone(s, "memory is short");
    }
    return s;
}

/* Time in which the host did not poll is not the worker's. */
static void selva__lose_patience(selva *s) {
    double now_s = selva__now_s(), step_s = now_s - s->polled_s;
    s->polled_s = now_s;
    s->waited_s = s->call_count ? s->waited_s + (step_s < 1 ? step_s : 0) : 0;
    if (s->waited_s > SELVA_TIMEOUT_S) selva__gone(s, "the worker does not answer");
}

int selva_poll(selva *s) {
    int came = 0, k, status;
    if (s->life == SELVA_GONE) {
        selva__reap(s, &status);
    } else if (s->ended_s > 0) {
        selva__ended(s);
    } else {
        if (s->out_used) selva__transmit(s);
        came = selva__receive(s);
        selva__lose_patience(s);
    }
    for (k = 0; k < SELVA_MAX_JOBS; k++) {
        if (s->jobs[k] && s->jobs[k]->state == SELVA_LOADING && (!s->wav_job || s->wav_job == s->jobs[k]->number)) {
            selva__load(s, s->jobs[k]);
            return 1;
        }
    }
    return came;
}

selva_life selva_life_of(const selva *s) { return s->life; }
const char *selva_error(const selva *s) { return s->error; }
const selva_job *selva_job_of(const selva *s, int number) { return selva__job(s, number); }

void selva_cancel(selva *s, int number) {
    selva_job *job = selva__job(s, number);
    if (!job || job->cancel_ || job->state >= SELVA_LOADING) return;
    job->cancel_ = 1;
    if (job->id_[0]) selva__about_job(s, "job.cancel", SELVA__CANCEL, job->id_, number);
}

selva_audio *selva_take(selva *s, int number, size_t stem) {
    selva_job *job = selva__job(s, number);
    selva_audio *audio = NULL;
    if (job && job->state == SELVA_DONE && stem < job->stem_count) {
        audio = job->stems[stem].audio;
        job->stems[stem].audio = NULL;
    }
    return audio;
}

void selva_forget(selva *s, int number) {
    int k;
    selva_cancel(s, number);
    for (k = 0; k < SELVA_MAX_JOBS; k++) {
        if (!number || !s->jobs[k] || s->jobs[k]->number != number) continue;
        if (s->wav_job == number) {
            selva__wav_close(&s->wav);
            s->wav_job = 0;
        }
        selva__free_job(s->jobs[k]);
        s->jobs[k] = NULL;
    }
}

void selva_close(selva *s) {
    struct timespec pause = {0, 5000000};
    int k, status;
    if (!s) return;
    if (s->socket >= 0) close(s->socket); /* the end of its input: it leaves */
    for (k = 0; k < 200 && s->life != SELVA_GONE && !selva__reap(s, &status); k++) nanosleep(&pause, NULL);
    if (s->process > 0) kill(s->process, SIGKILL);
    while (s->process > 0 && waitpid(s->process, &status, 0) < 0 && errno == EINTR) {}
    for (k = 0; k < SELVA_MAX_JOBS; k++)
        if (s->jobs[k]) selva__free_job(s->jobs[k]);
    selva__wav_close(&s->wav);
    free(s->in);
    free(s->out);
    free(s);
}

#ifdef __cplusplus
}
#endif
#endif /* SELVA_IMPLEMENTATION */
