#include "generator.hpp"
#include "resample.hpp"

#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <sys/stat.h>

namespace selva_plugin {

namespace {

// One worker for all instances in a host, so that the model is in memory once.
std::mutex worker_mutex;
selva *worker = nullptr;
int users = 0, workers = 0; // the second counts those that were started

const char *environment(const char *name, const char *otherwise) {
    const char *value = std::getenv(name);
    return value && *value ? value : otherwise;
}

selva *running_worker() { // with `worker_mutex`
    if (worker && selva_life_of(worker) == SELVA_GONE) {
        selva_close(worker);
        worker = nullptr;
    }
    const char *const command[] = {environment("SELVA_WORKER", "selva-worker"), "--stdio", nullptr};
    if (!worker) {
        worker = selva_start(command);
        workers++;
    }
    return worker;
}

double seconds(const std::string &text) { // std::strtod follows the locale of the host
    double value = 0, unit = 1;
    size_t k = !text.empty() && text[0] == '-';
    for (; k < text.size() && text[k] >= '0' && text[k] <= '9'; k++) value = value * 10 + (text[k] - '0');
    if (k < text.size() && text[k] == '.')
        for (k++; k < text.size() && text[k] >= '0' && text[k] <= '9'; k++) value += (unit /= 10) * (text[k] - '0');
    return !text.empty() && text[0] == '-' ? -value : value;
}

std::string folder_of(const std::string &path) { return path.substr(0, path.find_last_of('/') + 1); }

} // namespace

Generator::Generator(double rate_hz) : rate_hz_(rate_hz) {
    states_["video"] = environment("SELVA_VIDEO", "");
    states_["prompt"] = environment("SELVA_PROMPT", "");
    states_["folder"] = environment("SELVA_STEMS", "");
    {
        std::lock_guard<std::mutex> lock(worker_mutex);
        users++;
    }
    thread_ = std::thread(&Generator::run, this);
}

Generator::~Generator() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        leave_ = true;
    }
    wake_.notify_all();
    thread_.join();
    selva_slot_put(&slot_, nullptr);
    std::lock_guard<std::mutex> lock(worker_mutex);
    drop();
    if (--users == 0) {
        selva_close(worker);
        worker = nullptr;
    }
}

void Generator::press(bool on) noexcept {
    if (on != pressed_) wish_ = on ? kStart : kCancel;
    pressed_ = on;
}

void Generator::play(float *left, float *right, uint32_t count, int64_t position) noexcept {
    const double rate_hz = rate_hz_;
    const int64_t begin = position - std::llround(offset_s_ * rate_hz);
    const selva_audio *audio = selva_slot_enter(&slot_);
    std::memset(left, 0, count * sizeof(float));
    if (audio && audio->sample_rate_hz == (int)rate_hz) {
        const int64_t from = begin < 0 ? -begin : 0, left_over = (int64_t)audio->frames - begin;
        const int64_t to = left_over < (int64_t)count ? left_over : (int64_t)count;
        if (from < to) std::memcpy(left + from, audio->samples + begin + from, (size_t)(to - from) * sizeof(float));
    }
    selva_slot_leave(&slot_);
    std::memcpy(right, left, count * sizeof(float));
}

void Generator::set(const std::string &key, const std::string &value) {
    if (key == "message") return; // what was said when the session was saved
    if (key == "position_s") offset_s_ = seconds(value);
    {
        std::lock_guard<std::mutex> lock(mutex_);
        states_[key] = value;
    }
    if (key == "stem") load();
}

std::string Generator::get(const std::string &key) {
    std::lock_guard<std::mutex> lock(mutex_);
    return states_[key];
}

void Generator::set_rate(double rate_hz) {
    if (rate_hz_.exchange(rate_hz) != rate_hz) load();
}

void Generator::run() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!leave_) {
        lock.unlock();
        step();
        lock.lock();
        if (!leave_) wake_.wait_for(lock, std::chrono::milliseconds(20));
    }
}

void Generator::step() {
    const int wish = wish_.exchange(kNothing);
    if (wish == kStart) begin();
    if (job_) follow(wish == kCancel);
    std::lock_guard<std::mutex> lock(slot_mutex_);
    selva_slot_collect(&slot_);
}

void Generator::begin() {
    const std::string video = get("video"), prompt = get("prompt"), negative = get("negative");
    const std::string folder = get("folder").empty() ? folder_of(video) + "stems" : get("folder");
    const char *const prompts[] = {prompt.c_str()};
    char why[SELVA_TEXT];
    if (video.empty() || prompt.empty()) return fail("choose a video and write a prompt");
    if (mkdir(folder.c_str(), 0777) && errno != EEXIST) return fail(folder + ": " + std::strerror(errno));
    selva_request request = {};
    request.video = video.c_str();
    request.out = folder.c_str();
    request.negative = negative.empty() ? nullptr : negative.c_str();
    request.prompts = prompts;
    request.prompt_count = 1;
    request.seed = seed;
    request.steps = std::atoi(environment("SELVA_STEPS", "0"));
    request.duration_s = seconds(environment("SELVA_DURATION_S", "0"));
    request.sample_rate_hz = (int)rate_hz_;
    std::lock_guard<std::mutex> lock(worker_mutex);
    drop();
    selva *running = running_worker();
    of_worker_ = workers;
    job_ = running ? selva_submit(running, &request, why) : 0;
    if (!job_) return fail(running ? why : "memory is short");
    progress = 0;
    status = kWorking;
}

void Generator::follow(bool cancel) {
    std::lock_guard<std::mutex> lock(worker_mutex);
    if (of_worker_ != workers) { // it died, and another instance has started a new one
        job_ = 0;
        return fail("the worker is gone");
    }
    for (int k = 0; k < 64 && selva_poll(worker); k++) {}
    const selva_job *job = selva_job_of(worker, job_);
    if (cancel) selva_cancel(worker, job_);
    if (job->fraction >= 0) progress = (float)job->fraction;
    if (job->state >= SELVA_DONE) {
        finish(*job);
        drop();
    }
}

void Generator::drop() {
    if (job_ && of_worker_ == workers) selva_forget(worker, job_);
    job_ = 0;
}

void Generator::finish(const selva_job &job) {
    if (job.state == SELVA_CANCELLED) {
        std::lock_guard<std::mutex> lock(mutex_);
        status = states_["stem"].empty() ? kEmpty : kReady;
    } else if (job.state != SELVA_DONE) {
        fail(job.message);
    } else {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            states_["stem"] = job.stems[0].file;
            states_["message"] = job.notices;
        }
        put(selva_take(worker, job.number, 0));
    }
}

// Read the stem of a session, or that at another rate.
void Generator::load() {
    const std::string path = get("stem");
    char why[SELVA_TEXT];
    if (path.empty()) {
        std::lock_guard<std::mutex> lock(slot_mutex_);
        selva_slot_put(&slot_, nullptr);
        if (status == kReady) status = kEmpty;
        return;
    }
    selva_audio *audio = selva_read_wav(path.c_str(), why);
    if (audio) put(audio);
    else fail(why);
}

void Generator::put(selva_audio *audio) {
    const int rate_hz = (int)rate_hz_;
    if (audio && audio->sample_rate_hz != rate_hz) {
        selva_audio *other = resampled(*audio, rate_hz);
        selva_audio_free(audio);
        audio = other;
    }
    if (!audio) return fail("memory is short");
    {
        std::lock_guard<std::mutex> lock(slot_mutex_);
        selva_slot_put(&slot_, audio);
    }
    progress = 1;
    status = kReady;
}

void Generator::fail(const std::string &why) {
    std::lock_guard<std::mutex> lock(mutex_);
    states_["message"] = why;
    status = kFailed;
}

} // namespace selva_plugin
