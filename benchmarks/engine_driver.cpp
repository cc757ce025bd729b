// Runs packed models over frames without Python: for counting instructions under valgrind, and for times that no
// interpreter is part of (dyncp_kernels/bench/engine_driver.py).
//
//   engine_driver masks FOLDER                          writes the masks of all frames and prints the instruction set
//   engine_driver times SECONDS OTHER_BYTES FOLDER...   writes the times of calls, the models taking turns
//
// FOLDER holds raw little-endian files: packed and state (see csrc/core/stream_layout.h), features (float32, frames x
// bins), and for given gates index (int64) and biases (float32, frames x gates): before frame t, float32 number
// index[i] of the packed model becomes biases[t][i].  What is written there: masks (float32, frames x bins), times
// (double, microseconds).  With OTHER_BYTES so much other data is read before each call, untimed.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/aligned_memory.h"
#include "core/isa.h"
#include "core/stream_engine.h"
#include "core/stream_model.h"

namespace {

using Clock = std::chrono::steady_clock;

// A file's bytes in memory such as the engine takes for its own.
class Bytes {
 public:
  explicit Bytes(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> read{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    size_ = static_cast<int64_t>(read.size());
    memory_ = dyncp::allocate(size_);
    if (size_ > 0) std::memcpy(memory_.get(), read.data(), read.size());
  }
  template <class T>
  T* of() const {
    return static_cast<T*>(memory_.get());
  }
  template <class T>
  int64_t count() const {
    return size_ / static_cast<int64_t>(sizeof(T));
  }

 private:
  dyncp::Memory memory_;
  int64_t size_;
};

class Stream {
 public:
  explicit Stream(const std::string& folder)
      : packed_(folder + "/packed"),
        state_(folder + "/state"),
        features_(folder + "/features"),
        index_(folder + "/index"),
        biases_(folder + "/biases"),
        model_(dyncp::checked_model(packed_.of<char>(), packed_.count<char>())),
        mask_(model_.geometry.bins) {}

  int64_t frames() const { return features_.count<float>() / model_.geometry.bins; }
  const std::vector<float>& mask() const { return mask_; }

  // Makes the gate networks decide at that frame what they are wanted to.
  void place_gates(int64_t frame) {
    const int64_t gates = index_.count<int64_t>();
    const float* biases = biases_.of<float>() + frame * gates;
    for (int64_t i = 0; i < gates; ++i) packed_.of<float>()[index_.of<int64_t>()[i]] = biases[i];
  }
  void step(int64_t frame) {
    const float* features = features_.of<float>() + frame * model_.geometry.bins;
    dyncp::step_frames(model_, dyncp::one_stream({state_.of<char>(), 0.0f}), features, 1, mask_.data(), nullptr);
  }

 private:
  Bytes packed_, state_, features_, index_, biases_;
  const dyncp::PackedHeader& model_;
  std::vector<float> mask_;
};

template <class T>
void write_to(std::ofstream& file, const std::vector<T>& values) {
  file.write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(T)));
}

int write_masks(const std::string& folder) {
  Stream stream(folder);
  std::ofstream masks(folder + "/masks", std::ios::binary);
  for (int64_t t = 0; t < stream.frames(); ++t) {
    stream.place_gates(t);
    stream.step(t);
    write_to(masks, stream.mask());
  }
  std::puts(dyncp::isa_name(dyncp::active_isa()));
  return 0;
}

// As dyncp_kernels/bench/measure.py does it: models take turns in a new order each round, of which the first one does
// not count; in its turn a model makes calls that do not count, to get its data back into the caches, and some that do.
int write_times(double seconds, int64_t other_bytes, const std::vector<std::string>& folders) {
  struct Turn {
    std::string folder;
    std::unique_ptr<Stream> stream;
    int64_t frame;
    std::vector<double> times;
  };
  std::vector<Turn> turns;
  for (const std::string& folder : folders) turns.push_back({folder, std::make_unique<Stream>(folder), 0, {}});
  constexpr int64_t kLongs = dyncp::kLine / static_cast<int64_t>(sizeof(int64_t));
  const std::vector<int64_t> other(other_bytes / sizeof(int64_t), 1);
  [[maybe_unused]] volatile int64_t sink = 0;
  const int settle = other_bytes > 0 ? 2 : 10, calls = other_bytes > 0 ? 8 : 40;
  constexpr int kLeastRounds = 7;

  std::mt19937 draw(0);
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  for (int round = -1; round < kLeastRounds || Clock::now() < end; ++round) {
    std::shuffle(turns.begin(), turns.end(), draw);
    for (Turn& turn : turns) {
      for (int call = 0; call < settle + calls; ++call) {
        turn.stream->place_gates(turn.frame);
        int64_t sum = 0;
        for (size_t j = 0; j < other.size(); j += kLongs) sum += other[j];
        sink = sum;
        const auto start = Clock::now();
        turn.stream->step(turn.frame);
        const std::chrono::duration<double, std::micro> elapsed = Clock::now() - start;
        if (call >= settle && round >= 0) turn.times.push_back(elapsed.count());
        turn.frame = (turn.frame + 1) % turn.stream->frames();
      }
    }
  }
  for (const Turn& turn : turns) {
    std::ofstream file(turn.folder + "/times", std::ios::binary);
    write_to(file, turn.times);
  }
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  const std::vector<std::string> given(arguments + 1, arguments + count);
  if (given.size() == 2 && given[0] == "masks") return write_masks(given[1]);
  if (given.size() >= 4 && given[0] == "times") {
    return write_times(std::stod(given[1]), std::stoll(given[2]), {given.begin() + 3, given.end()});
  }
  return 2;
}
