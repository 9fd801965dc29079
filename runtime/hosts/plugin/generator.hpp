// What makes the stem: a thread of its own that talks to the worker and puts sound where the audio callback finds it.
//
// The audio callback calls `press`, `play` and reads atomics; it takes no lock and allocates nothing. States are text
// that the host sets and saves from its other threads.
#ifndef SELVA_GENERATOR_HPP
#define SELVA_GENERATOR_HPP

#include "../c/selva.h"

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <thread>

namespace selva_plugin {

enum Status { kEmpty, kWorking, kReady, kFailed };

class Generator {
public:
    explicit Generator(double rate_hz);
    ~Generator();
    Generator(const Generator &) = delete;
    Generator &operator=(const Generator &) = delete;

    // For the audio callback. `on` is the Generate switch as it is in this block: switching it on starts, switching it
    // off cancels. A switch that is on from the beginning, as in a session that was saved so, does nothing.
    void press(bool on) noexcept;
    // Write `count` samples of what sounds at the frame `position` of the transport.
    void play(float *left, float *right, uint32_t count, int64_t position) noexcept;

    // For the host's other threads. A stem of a session, and all after a change of the rate, is read at once, so that it
    // is there when the host renders without a pause.
    void set(const std::string &key, const std::string &value);
    std::string get(const std::string &key);
    void set_rate(double rate_hz);

    std::atomic<int> status{kEmpty};
    std::atomic<float> progress{0};
    std::atomic<int> seed{0};

private:
    void run();
    void step();
    void begin();
    void follow(bool cancel);
    void drop(); // the job, with the worker's mutex
    void finish(const selva_job &job);
    void load();
    void put(selva_audio *audio);
    void fail(const std::string &why);

    // The audio callback takes none of these. They are taken in this order, after the worker's.
    std::mutex slot_mutex_; // of writing to `slot_`
    std::mutex mutex_;      // of `states_` and `leave_`
    std::condition_variable wake_;
    std::map<std::string, std::string> states_;
    bool leave_ = false;
    std::atomic<double> rate_hz_, offset_s_{0};
    enum Wish { kNothing, kStart, kCancel };
    std::atomic<int> wish_{kNothing}; // the callback's last
    bool pressed_ = true;         // the audio callback's own
    int job_ = 0, of_worker_ = 0; // the thread's own
    selva_slot slot_ = {nullptr, nullptr, 0};
    std::thread thread_;
};

} // namespace selva_plugin

#endif
