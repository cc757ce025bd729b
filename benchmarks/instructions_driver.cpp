// Runs a packed model over frames, for counting instructions under valgrind (dyncp_kernels/bench/instructions.py).
//
//   instructions_driver FOLDER FRAMES
//
// FOLDER holds raw little-endian files: packed and state (see csrc/core/stream_layout.h), features (float32, frames x
// bins), and for given gates index (int64) and biases (float32, frames x gates): before frame t, float32 number
// index[i] of the packed model becomes biases[t][i].  Writes the masks (float32, FRAMES x bins) and prints the
// instruction set.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "core/isa.h"
#include "core/stream_engine.h"
#include "core/stream_model.h"

namespace {

std::vector<char> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

char* aligned_copy(const std::vector<char>& bytes) {
  const size_t size = (bytes.size() + dyncp::kLine - 1) / dyncp::kLine * dyncp::kLine;
  char* copy = static_cast<char*>(std::aligned_alloc(dyncp::kLine, size));
  std::memcpy(copy, bytes.data(), bytes.size());
  return copy;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return 2;
  const std::string folder = std::string(arguments[1]) + "/";
  const int frames = std::atoi(arguments[2]);
  const std::vector<char> packed = read_file(folder + "packed");
  char* weights = aligned_copy(packed);
  char* state = aligned_copy(read_file(folder + "state"));
  const char* features = aligned_copy(read_file(folder + "features"));
  const std::vector<char> index_bytes = read_file(folder + "index");
  const char* index = aligned_copy(index_bytes);
  const char* biases = aligned_copy(read_file(folder + "biases"));
  const int64_t gates = static_cast<int64_t>(index_bytes.size() / sizeof(int64_t));

  const dyncp::PackedHeader& model = dyncp::checked_model(weights, static_cast<int64_t>(packed.size()));
  const int64_t bins = model.geometry.bins;
  std::vector<float> masks(frames * bins);
  for (int64_t t = 0; t < frames; ++t) {
    for (int64_t i = 0; i < gates; ++i) {
      reinterpret_cast<float*>(weights)[reinterpret_cast<const int64_t*>(index)[i]] =
          reinterpret_cast<const float*>(biases)[t * gates + i];
    }
    dyncp::step_frames(model, dyncp::one_stream({state, 0.0f}), reinterpret_cast<const float*>(features) + t * bins, 1,
                       masks.data() + t * bins, nullptr);
  }
  std::ofstream(folder + "masks", std::ios::binary)
      .write(reinterpret_cast<const char*>(masks.data()), static_cast<std::streamsize>(masks.size() * sizeof(float)));
  std::puts(dyncp::isa_name(dyncp::active_isa()));
  return 0;
}
