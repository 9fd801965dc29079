// The CLAP entry, around that of DPF. DPF 1.6 takes `steady_time`, which never jumps, for the transport's position. Here
// each block gets the position in the song instead, in CLAP's unit of 2^-31 s; plugin.cpp makes frames of it.
#define clap_entry dpf_clap_entry
#include "DistrhoPluginMain.cpp"
#undef clap_entry

namespace {

decltype(clap_plugin_t::process) dpf_process; // the same for every instance
clap_plugin_factory_t factory;

clap_process_status process(const clap_plugin_t *plugin, const clap_process_t *given) {
    clap_process_t block = *given;
    clap_event_transport_t transport;
    if (given->transport) {
        transport = *given->transport;
        block.transport = &transport;
        block.steady_time = transport.song_pos_seconds;
        if (!(transport.flags & CLAP_TRANSPORT_HAS_SECONDS_TIMELINE) || transport.song_pos_seconds < 0)
            transport.flags &= ~uint32_t(CLAP_TRANSPORT_IS_PLAYING);
    }
    return dpf_process(plugin, &block);
}

const clap_plugin_t *create(const clap_plugin_factory_t *, const clap_host_t *host, const char *id) {
    const auto *of_dpf = static_cast<const clap_plugin_factory_t *>(dpf_clap_entry.get_factory(CLAP_PLUGIN_FACTORY_ID));
    auto *plugin = const_cast<clap_plugin_t *>(of_dpf->create_plugin(of_dpf, host, id));
    if (plugin) {
        dpf_process = plugin->process;
        plugin->process = process;
    }
    return plugin;
}

const void *get_factory(const char *id) {
    const void *of_dpf = dpf_clap_entry.get_factory(id);
    if (!of_dpf || std::strcmp(id, CLAP_PLUGIN_FACTORY_ID)) return of_dpf;
    factory = *static_cast<const clap_plugin_factory_t *>(of_dpf);
    factory.create_plugin = create;
    return &factory;
}

} // namespace

extern "C" DISTRHO_PLUGIN_EXPORT const clap_plugin_entry_t clap_entry = {
    CLAP_VERSION, [](const char *path) { return dpf_clap_entry.init(path); }, [] { dpf_clap_entry.deinit(); }, get_factory};
