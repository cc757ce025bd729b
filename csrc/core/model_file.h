// Model files: a folded network as safetensors, float32, its geometry as JSON in the metadata entry "config", and in
// "calibration", which may be missing, pairs [share of kept channels, shift of the gate scores], shares rising.
//
// Tensors: front.weight front.bias back.weight back.bias, and for block N blocks.N. followed by w_in b_in w_dw b_dw
// w_out b_out, with PReLU slope_in slope_dw, with gates gate.reduce.weight gate.reduce.bias gate.expand.weight
// gate.expand.bias or, for gates that never change, gate.score.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/stream_model.h"

namespace dyncp {

struct CalibrationPoint {
  double share, shift;
};

// A view into `bytes`, which must outlive it and be aligned to 4 bytes at its start; `copies` holds the tensors that
// are not aligned in the file.  Throws std::invalid_argument, naming what is wrong, for anything but a whole, valid
// file.
struct FoldedFile {
  FoldedView view;
  std::vector<std::vector<float>> copies;
  std::vector<CalibrationPoint> calibration;
};

FoldedFile parse_folded_file(const uint8_t* bytes, int64_t count);

// Throws std::runtime_error when the file cannot be read.
std::vector<uint8_t> read_file(const std::string& path);

}  // namespace dyncp
