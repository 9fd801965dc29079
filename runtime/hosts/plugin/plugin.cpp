// The plug-in as DPF sees it: two parameters, two meters, and texts that are saved in the session.
#include "DistrhoPlugin.hpp"
#include "generator.hpp"

#include <memory>

START_NAMESPACE_DISTRHO

namespace {

struct Text {
    const char *key, *label;
    uint32_t hints;
};

const Text kTexts[] = {
    {"video", "Video", kStateIsFilenamePath},
    {"prompt", "Prompt", kStateIsHostWritable},
    {"negative", "Negative prompt", kStateIsHostWritable},
    {"position_s", "Position of the video in the session (s)", kStateIsHostWritable},
    {"folder", "Folder for stems", kStateIsHostWritable},
    {"stem", "Stem", kStateIsHostReadable},
    {"message", "Message", kStateIsHostReadable},
};
const uint32_t kTextCount = sizeof kTexts / sizeof *kTexts;

} // namespace

class SelvaStem : public Plugin {
public:
    SelvaStem() : Plugin(kParameterCount, 0, kTextCount) {
        if (!isDummyInstance()) generator_.reset(new selva_plugin::Generator(getSampleRate()));
    }

protected:
    const char *getLabel() const override { return "selva_stem"; }
    const char *getDescription() const override { return "The sound of one thing in a video, from a text prompt."; }
    const char *getMaker() const override { return "selva-deploy"; }
    const char *getLicense() const override { return "MIT"; }
    uint32_t getVersion() const override { return d_version(0, 1, 0); }
    int64_t getUniqueId() const override { return d_cconst('S', 'l', 'V', 's'); }

    void initParameter(uint32_t index, Parameter &parameter) override {
        static const char *const symbols[] = {"generate", "seed", "status", "progress"};
        static const char *const names[] = {"Generate", "Seed", "Status", "Progress"};
        static const char *const states[] = {"empty", "working", "ready", "failed"};
        parameter.symbol = symbols[index];
        parameter.name = names[index];
        parameter.ranges.min = 0;
        parameter.ranges.def = 0;
        parameter.ranges.max = index == kSeed ? 9999 : index == kStatus ? 3 : 1;
        if (index == kGenerate) parameter.hints = kParameterIsBoolean | kParameterIsInteger;
        if (index == kSeed) parameter.hints = kParameterIsInteger;
        if (index == kStatus) parameter.hints = kParameterIsOutput | kParameterIsInteger;
        if (index == kProgress) parameter.hints = kParameterIsOutput;
        if (index != kStatus) return;
        parameter.enumValues.count = 4;
        parameter.enumValues.restrictedMode = true;
        parameter.enumValues.values = new ParameterEnumerationValue[4];
        for (int k = 0; k < 4; k++) {
            parameter.enumValues.values[k].value = float(k);
            parameter.enumValues.values[k].label = states[k];
        }
    }

    void initState(uint32_t index, State &state) override {
        state.key = kTexts[index].key;
        state.label = kTexts[index].label;
        state.hints = kTexts[index].hints;
        if (generator_) state.defaultValue = generator_->get(kTexts[index].key).c_str();
    }

    float getParameterValue(uint32_t index) const override {
        if (index == kGenerate) return generate_ ? 1 : 0;
        if (!generator_) return 0;
        if (index == kSeed) return float(generator_->seed);
        return index == kStatus ? float(generator_->status) : float(generator_->progress);
    }

    void setParameterValue(uint32_t index, float value) override {
        if (index == kGenerate) generate_ = value > 0.5f;
        if (index == kSeed && generator_) generator_->seed = int(value + 0.5f);
    }

    String getState(const char *key) const override {
        return String(generator_ ? generator_->get(key).c_str() : "");
    }

    void setState(const char *key, const char *value) override {
        if (generator_) generator_->set(key, value);
    }

    void sampleRateChanged(double rate_hz) override {
        if (generator_) generator_->set_rate(rate_hz);
    }

    void run(const float **, float **outputs, uint32_t frames) override {
        const TimePosition &time = getTimePosition();
        generator_->press(generate_);
        if (time.playing) {
            generator_->play(outputs[0], outputs[1], frames, position(time.frame));
        } else {
            std::memset(outputs[0], 0, frames * sizeof(float));
            std::memset(outputs[1], 0, frames * sizeof(float));
        }
    }

private:
    int64_t position(uint64_t frame) const {
#ifdef DISTRHO_PLUGIN_TARGET_CLAP
        return std::llround(double(frame) / 2147483648.0 * getSampleRate()); // clap.cpp passes CLAP's own time
#else
        return int64_t(frame);
#endif
    }

    std::atomic<bool> generate_{false};
    std::unique_ptr<selva_plugin::Generator> generator_;

    DISTRHO_DECLARE_NON_COPYABLE_WITH_LEAK_DETECTOR(SelvaStem)
};

Plugin *createPlugin() { return new SelvaStem(); }

END_NAMESPACE_DISTRHO
