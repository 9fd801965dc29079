/* A small CLAP host: clap_host FILE.clap RATE BLOCK. One command a line of stdin. `process` runs under rt_guard.h.

   param ID VALUE            with the next block
   run FILE POSITION COUNT   the transport plays from this frame; the left channel goes to FILE as 32-bit floats
   stop FILE COUNT           the transport stands
   wait STATUS               until parameter 2 has this value
   save FILE, load FILE      the plug-in's state */
#define _GNU_SOURCE
#include "rt_guard.h"

#include "clap/entry.h"
#include "clap/ext/params.h"
#include "clap/ext/state.h"
#include "clap/plugin-factory.h"

#include <stdio.h>
#include <string.h>

static const clap_plugin_t *plugin;
static double rate;
static uint32_t block;
static int64_t steady; /* unlike the transport it never jumps */
static clap_event_param_value_t event;
static int has_event;

static uint32_t event_count(const clap_input_events_t *list) {
    (void)list;
    return (uint32_t)has_event;
}
static const clap_event_header_t *event_get(const clap_input_events_t *list, uint32_t index) {
    (void)list, (void)index;
    return &event.header;
}
static bool event_push(const clap_output_events_t *list, const clap_event_header_t *given) {
    (void)list, (void)given;
    return true;
}
static int64_t stream_write(const clap_ostream_t *stream, const void *data, uint64_t size) {
    return (int64_t)fwrite(data, 1, size, (FILE *)stream->ctx);
}
static int64_t stream_read(const clap_istream_t *stream, void *data, uint64_t size) {
    return (int64_t)fread(data, 1, size, (FILE *)stream->ctx);
}

/* Play `count` frames. A position below 0 means that the transport stands. */
static void run(const char *path, int64_t position, uint32_t count) {
    static float left[8192], right[8192];
    float *channels[] = {left, right};
    FILE *out = path ? fopen(path, "wb") : NULL;
    while (count) {
        const uint32_t size = count < block ? count : block;
        clap_audio_buffer_t output = {channels, NULL, 2, 0, 0};
        clap_input_events_t in = {NULL, event_count, event_get};
        clap_output_events_t outs = {NULL, event_push};
        clap_event_transport_t transport;
        clap_process_t process = {0};
        uint32_t k;
        memset(&transport, 0, sizeof transport);
        transport.header.size = sizeof transport;
        transport.header.type = CLAP_EVENT_TRANSPORT;
        transport.flags = CLAP_TRANSPORT_HAS_SECONDS_TIMELINE | (position >= 0 ? CLAP_TRANSPORT_IS_PLAYING : 0);
        transport.song_pos_seconds = position < 0 ? 0 : (int64_t)((double)position / rate * (double)CLAP_SECTIME_FACTOR + 0.5);
        process.steady_time = steady;
        process.frames_count = size;
        process.transport = &transport;
        process.audio_outputs = &output;
        process.audio_outputs_count = 1;
        process.in_events = &in;
        process.out_events = &outs;
        for (k = 0; k < size; k++) left[k] = right[k] = 9;
        guard = 1;
        plugin->process(plugin, &process);
        guard = 0;
        if (memcmp(left, right, size * sizeof(float))) puts("channels differ");
        if (out) fwrite(left, sizeof(float), size, out);
        has_event = 0;
        steady += size;
        count -= size;
        if (position >= 0) position += size;
    }
    if (out) fclose(out);
}

static void set_param(unsigned id, double value) {
    memset(&event, 0, sizeof event);
    event.header.size = sizeof event;
    event.header.type = CLAP_EVENT_PARAM_VALUE;
    event.param_id = id;
    event.note_id = event.port_index = event.channel = event.key = -1;
    event.value = value;
    has_event = 1;
    run(NULL, -1, block);
}

static double get_param(unsigned id) {
    const clap_plugin_params_t *params = (const clap_plugin_params_t *)plugin->get_extension(plugin, CLAP_EXT_PARAMS);
    double value = -1;
    params->get_value(plugin, id, &value);
    return value;
}

static void state(const char *command, const char *path) {
    const clap_plugin_state_t *state = (const clap_plugin_state_t *)plugin->get_extension(plugin, CLAP_EXT_STATE);
    FILE *file = fopen(path, strcmp(command, "save") ? "rb" : "wb");
    clap_ostream_t to = {file, stream_write};
    clap_istream_t from = {file, stream_read};
    printf("%d\n", strcmp(command, "save") ? state->load(plugin, &from) : state->save(plugin, &to));
    fclose(file);
}

static const void *host_extension(const clap_host_t *host, const char *id) {
    (void)host, (void)id;
    return NULL;
}
static void host_request(const clap_host_t *host) { (void)host; }

int main(int count, char **words) {
    static const clap_host_t host = {CLAP_VERSION, NULL, "clap_host", "", "", "1", host_extension, host_request, host_request, host_request};
    void *library = count == 4 ? dlopen(words[1], RTLD_NOW | RTLD_LOCAL) : NULL;
    const clap_plugin_entry_t *entry = library ? (const clap_plugin_entry_t *)dlsym(library, "clap_entry") : NULL;
    const clap_plugin_factory_t *factory;
    char line[5000], command[20], path[4100];
    if (!entry || !entry->init(words[1])) {
        fprintf(stderr, "%s\n", library ? "no CLAP" : dlerror());
        return 2;
    }
    rate = atof(words[2]);
    block = (uint32_t)atoi(words[3]);
    factory = (const clap_plugin_factory_t *)entry->get_factory(CLAP_PLUGIN_FACTORY_ID);
    plugin = factory->create_plugin(factory, &host, factory->get_plugin_descriptor(factory, 0)->id);
    plugin->init(plugin);
    plugin->activate(plugin, rate, 1, block);
    plugin->start_processing(plugin);
    run(NULL, -1, block);
    while (fgets(line, sizeof line, stdin)) {
        long long position = -1;
        unsigned frames = 0, id;
        double value;
        int tries;
        if (sscanf(line, "run %4099s %lld %u", path, &position, &frames) == 3 || sscanf(line, "stop %4099s %u", path, &frames) == 2) {
            run(path, position, frames);
            puts("ran");
        } else if (sscanf(line, "param %u %lf", &id, &value) == 2) {
            set_param(id, value);
        } else if (sscanf(line, "wait %lf", &value) == 1) {
            for (tries = 0; tries < 6000 && get_param(2) != value; tries++) {
                run(NULL, -1, block);
                usleep(5000);
            }
            printf("%g\n", get_param(2));
        } else if (sscanf(line, "%19s %4099s", command, path) == 2) {
            state(command, path);
        }
        fflush(stdout);
    }
    plugin->stop_processing(plugin);
    plugin->deactivate(plugin);
    plugin->destroy(plugin);
    entry->deinit();
    dlclose(library);
    return 0;
}
