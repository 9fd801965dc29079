/* Does one thing with selva.h and prints what came of it; the tests of the header run it.

   selva_try json                            each line of stdin: whether it is JSON, and its text "k" in hexadecimal
   selva_try wav FILE                        the samples, as 32-bit floats
   selva_try slot                            a writer and an audio thread, for a sanitizer
   selva_try run OUT VIDEO PROMPT... -- COMMAND...   one job; TRY_CANCEL, TRY_FORGET, TRY_KEY, TRY_RATE,
   TRY_TIMEOUT, TRY_PAUSE before the first poll, and TRY_SECONDS */
#define SELVA_IMPLEMENTATION
#define SELVA_TIMEOUT_S try_timeout_s
static double try_timeout_s = 20;
#include "selva.h"

#include <locale.h>
#include <pthread.h>

static int try_json(void) {
    static char line[1 << 16], text[1 << 16];
    while (fgets(line, sizeof line, stdin)) {
        const char *end, *p = selva__space(line);
        size_t k, length = strlen(line) - 1;
        line[length] = 0;
        end = selva__skip(p, SELVA__DEPTH);
        if (!end || *selva__space(end)) {
            puts("no");
            continue;
        }
        printf("yes ");
        if (selva__text(selva__get(p, "k"), text, sizeof text))
            for (k = 0; text[k]; k++) printf("%02x", (unsigned)(unsigned char)text[k]);
        puts("");
    }
    return 0;
}

static int try_wav(const char *path) {
    char why[SELVA_TEXT];
    selva_audio *audio = selva_read_wav(path, why);
    if (!audio) {
        fprintf(stderr, "%s\n", why);
        return 2;
    }
    fprintf(stderr, "%d\n", audio->sample_rate_hz);
    fwrite(audio->samples, sizeof(float), audio->frames, stdout);
    selva_audio_free(audio);
    return 0;
}

/* The audio thread checks that a sound is whole: all its samples are the number of its frames. */
static selva_slot slot;
static int stop, seen, wrong;

static void *listen_to_slot(void *nothing) {
    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
        const selva_audio *audio = selva_slot_enter(&slot);
        size_t k;
        for (k = 0; audio && k < audio->frames; k++) wrong |= audio->samples[k] != (float)audio->frames;
        if (audio) __atomic_add_fetch(&seen, 1, __ATOMIC_RELAXED);
        selva_slot_leave(&slot);
    }
    return nothing;
}

static int try_slot(void) {
    pthread_t thread;
    int put, kept = 0;
    pthread_create(&thread, NULL, listen_to_slot, NULL);
    for (put = 0; put < 3000 || (__atomic_load_n(&seen, __ATOMIC_RELAXED) < 100 && put < 1000000); put++) {
        selva_audio *audio = put % 7 ? selva_audio_new((size_t)(put % 500 + 1), 48000) : NULL, *old;
        size_t k;
        int count = 0;
        for (k = 0; audio && k < audio->frames; k++) audio->samples[k] = (float)audio->frames;
        selva_slot_put(&slot, audio);
        for (old = slot.retired_; old; old = old->next_) count++;
        kept = count > kept ? count : kept;
    }
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    pthread_join(thread, NULL);
    selva_slot_put(&slot, NULL);
    printf("seen %d wrong %d kept %d left %d\n", seen > 0, wrong, kept, slot.retired_ != NULL);
    return 0;
}

static double cpu_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void print_job(selva *worker, const selva_job *job) {
    size_t k, n;
    printf("job\t%d\t%s\n", (int)job->state, job->message);
    printf("notices\t%s\n", job->notices[0] ? strtok(strcpy((char[2048]){0}, job->notices), "\n") : "");
    for (k = 0; k < job->stem_count && job->state == SELVA_DONE; k++) {
        const selva_stem *stem = &job->stems[k];
        selva_audio *audio = selva_take(worker, job->number, k);
        double sum = 0;
        for (n = 0; n < audio->frames; n++) sum += (double)(n + 1) * (double)audio->samples[n];
        printf("stem\t%s\t%s\t%d\t%lld\t%d\t%lu\t%.9g\n", stem->prompt, stem->file, stem->take, stem->seed,
               audio->sample_rate_hz, (unsigned long)audio->frames, sum);
        selva_audio_free(audio);
        if (selva_take(worker, job->number, k)) puts("taken twice");
    }
}

static int try_run(int count, char **words) {
    const char *cancel = getenv("TRY_CANCEL"), *rate = getenv("TRY_RATE"), *limit = getenv("TRY_SECONDS");
    int prompts = 0, number, polls;
    double worst_s = 0, begin_s, before_s;
    char why[SELVA_TEXT], phase[32] = "";
    selva *worker;
    selva_request request;
    const selva_job *job = NULL;
    struct timespec pause = {0, 1000000};
    while (2 + prompts < count && strcmp(words[2 + prompts], "--")) prompts++;
    memset(&request, 0, sizeof request);
    request.out = words[0], request.video = words[1], request.prompts = (const char *const *)(void *)(words + 2);
    request.prompt_count = (size_t)prompts;
    request.duration_s = 1.25, request.steps = 2, request.seed = 7, request.takes = 2, request.key = getenv("TRY_KEY");
    request.quality = getenv("TRY_QUALITY");
    request.sample_rate_hz = rate ? atoi(rate) : 0;
    if (getenv("TRY_TIMEOUT")) try_timeout_s = atof(getenv("TRY_TIMEOUT"));
    before_s = selva__now_s();
    worker = selva_start((const char *const *)(void *)(words + 3 + prompts));
    printf("start\t%.3f\n", selva__now_s() - before_s);
    number = selva_submit(worker, &request, why);
    if (!number) printf("refused\t%s\n", why);
    if (number && getenv("TRY_FORGET")) selva_forget(worker, number);
    if (getenv("TRY_PAUSE")) usleep((unsigned)(1e6 * atof(getenv("TRY_PAUSE"))));
    begin_s = selva__now_s();
    for (polls = 0; selva__now_s() - begin_s < (limit ? atof(limit) : 20.0); polls++) {
        before_s = cpu_s();
        selva_poll(worker);
        before_s = cpu_s() - before_s;
        worst_s = before_s > worst_s ? before_s : worst_s;
        job = selva_job_of(worker, number);
        if (job && strcmp(phase, job->phase)) printf("phase\t%s\t%g\n", strcpy(phase, job->phase), job->fraction);
        if (job && cancel && (!*cancel || !strcmp(cancel, phase))) selva_cancel(worker, number);
        if ((job && job->state >= SELVA_DONE) || selva_life_of(worker) == SELVA_GONE) break;
        nanosleep(&pause, NULL);
    }
    if (job) print_job(worker, job);
    printf("life\t%d\t%s\n", (int)selva_life_of(worker), selva_error(worker));
    printf("polls\t%d\t%.3f\t%.3f\n", polls, worst_s, selva__now_s() - begin_s);
    before_s = selva__now_s();
    selva_close(worker);
    printf("close\t%.3f\n", selva__now_s() - before_s);
    return 0;
}

int main(int count, char **words) {
    setlocale(LC_ALL, ""); /* as hosts do; some locales write numbers with a comma */
    signal(SIGPIPE, SIG_DFL);
    if (count == 2 && !strcmp(words[1], "json")) return try_json();
    if (count == 2 && !strcmp(words[1], "slot")) return try_slot();
    if (count == 3 && !strcmp(words[1], "wav")) return try_wav(words[2]);
    if (count > 5 && !strcmp(words[1], "run")) return try_run(count - 2, words + 2);
    return 1;
}
