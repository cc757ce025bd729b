#include "core/model_file.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "core/json.h"

namespace dyncp {
namespace {

constexpr int64_t kLongestHeader = 8 << 20;  // many times that of the largest network; reading it takes more memory

[[noreturn]] void fail(const std::string& text) { throw std::invalid_argument("model file: " + text); }

Json parse(const char* begin, const char* end) {
  try {
    return parse_json(begin, end);
  } catch (const std::invalid_argument& error) {
    fail(error.what());
  }
}

class Config {
 public:
  explicit Config(const Json& json) : json_(json) {
    if (json.kind != Json::Kind::object) fail("config must be a JSON object");
  }

  const Json& member(const char* name, Json::Kind kind) const {
    const Json* found = json_.find(name);
    if (found == nullptr || found->kind != kind) fail(std::string("config must have a valid ") + name);
    return *found;
  }

  static int whole_number(const Json& value, const char* name) {
    if (value.kind != Json::Kind::number || value.number != std::floor(value.number) || std::fabs(value.number) > 1e9) {
      fail(std::string("config must have a whole number as ") + name);
    }
    return static_cast<int>(value.number);
  }

  int count(const char* name) const { return whole_number(member(name, Json::Kind::number), name); }
  const std::string& text(const char* name) const { return member(name, Json::Kind::string).string; }

  // The index of the member among `choices`.
  int choice(const char* name, const std::vector<std::string>& choices) const {
    const std::string& value = text(name);
    for (size_t i = 0; i < choices.size(); ++i) {
      if (value == choices[i]) return static_cast<int>(i);
    }
    fail(std::string("config has a ") + name + " that streaming cannot run (got " + value + ")");
  }

 private:
  const Json& json_;
};

struct Parsed {
  Geometry geometry;
  std::vector<int> dilations;  // of every block
};

Parsed parse_config(const Json& json) {
  const Config config(json);
  Parsed parsed{};
  Geometry& g = parsed.geometry;
  g.bins = config.count("bins");
  g.channels = config.count("channels");
  g.hidden = config.count("hidden");
  g.taps = config.count("kernel_size");
  g.n_fft = config.count("n_fft");
  g.hop = config.count("hop");
  g.sample_rate = config.count("sample_rate");
  g.compression = static_cast<float>(config.member("compression", Json::Kind::number).number);
  g.has_prelu = config.choice("activation", {"relu", "prelu"});
  if (!config.member("causal", Json::Kind::boolean).boolean) fail("the network must be causal for streaming");
  const int site = config.choice("site", {"none", "output", "hidden", "both"});
  g.gates_out = site & 1;
  g.gates_hidden = site >> 1;
  if (site != 0) {
    const bool is_constant = config.choice("gate_per", {"frame", "static"}) == 1;
    g.gate_kind = is_constant ? GateKind::constant : GateKind::pooled;
    if (!is_constant) {
      g.pooling = static_cast<StreamPooling>(config.choice("gate_pooling", {"average", "exponential", "window"}));
      g.window = config.count("gate_window");
      g.gate_width = config.count("gate_hidden");
    }
  }
  const int stacks = config.count("stacks");
  const std::vector<Json>& dilations = config.member("dilations", Json::Kind::array).items;
  if (stacks < 1 || stacks > 1024 || dilations.empty() || dilations.size() > 1024) {
    fail("config must have 1 to 1024 stacks and dilations");
  }
  for (int stack = 0; stack < stacks; ++stack) {
    for (const Json& dilation : dilations) {
      parsed.dilations.push_back(Config::whole_number(dilation, "dilations"));
      if (parsed.dilations.back() < 1 || parsed.dilations.back() > (1 << 16)) {
        fail("dilations must be between 1 and 65536");
      }
    }
  }
  g.blocks = static_cast<int32_t>(parsed.dilations.size());
  check_geometry(g);
  return parsed;
}

std::vector<CalibrationPoint> parse_calibration(const Json& json) {
  const auto check = [](bool holds) {
    if (!holds) fail("calibration must be pairs of a share and a shift, shares rising");
  };
  check(json.kind == Json::Kind::array);
  std::vector<CalibrationPoint> points;
  for (const Json& pair : json.items) {
    check(pair.items.size() == 2 && pair.items[0].kind == Json::Kind::number &&
          pair.items[1].kind == Json::Kind::number);
    const CalibrationPoint point{pair.items[0].number, pair.items[1].number};
    check(points.empty() || point.share > points.back().share);
    points.push_back(point);
  }
  return points;
}

// The tensors of a file by name, checked against the shape that the geometry asks for.
class Tensors {
 public:
  Tensors(const Json& header, const uint8_t* data, int64_t bytes, std::vector<std::vector<float>>& copies)
      : header_(header), data_(data), bytes_(bytes), copies_(copies) {}

  const float* take(const std::string& name, const std::vector<int64_t>& shape) {
    const Json* entry = header_.find(name);
    if (entry == nullptr) fail("tensor " + name + " is missing");
    const Json *dtype = entry->find("dtype"), *dims = entry->find("shape"), *offsets = entry->find("data_offsets");
    if (dtype == nullptr || dtype->string != "F32") fail("tensor " + name + " must have dtype F32");
    bool fits = dims != nullptr && dims->items.size() == shape.size();
    int64_t count = 1;
    for (size_t i = 0; fits && i < shape.size(); ++i) {
      fits = dims->items[i].kind == Json::Kind::number && dims->items[i].number == static_cast<double>(shape[i]);
      count *= shape[i];
    }
    if (!fits) fail("tensor " + name + " must have the shape that the config asks for");
    if (offsets == nullptr || offsets->items.size() != 2) fail("tensor " + name + " must have two data_offsets");
    const double begin = offsets->items[0].number, end = offsets->items[1].number;
    if (!(begin >= 0 && begin <= end && end <= static_cast<double>(bytes_) && begin == std::floor(begin) &&
          end - begin == static_cast<double>(count) * 4)) {
      fail("tensor " + name + " must lie inside the file and have the size of its shape");
    }
    ++taken_;
    const uint8_t* start = data_ + static_cast<int64_t>(begin);
    if (reinterpret_cast<uintptr_t>(start) % alignof(float) == 0) return reinterpret_cast<const float*>(start);
    copies_.emplace_back(static_cast<size_t>(count));
    std::memcpy(copies_.back().data(), start, static_cast<size_t>(count) * 4);
    return copies_.back().data();
  }

  size_t taken() const { return taken_; }

 private:
  const Json& header_;
  const uint8_t* data_;
  int64_t bytes_;
  std::vector<std::vector<float>>& copies_;
  size_t taken_ = 0;
};

}  // namespace

FoldedFile parse_folded_file(const uint8_t* bytes, int64_t count) {
  if (count < 8) fail("must hold at least the 8 bytes of the header's length (got " + std::to_string(count) + ")");
  uint64_t length = 0;
  for (int i = 0; i < 8; ++i) length |= static_cast<uint64_t>(bytes[i]) << (8 * i);
  if (length > static_cast<uint64_t>(kLongestHeader) || static_cast<int64_t>(length) > count - 8) {
    fail("the header must lie inside the file (got a length of " + std::to_string(length) + ")");
  }
  const char* text = reinterpret_cast<const char*>(bytes) + 8;
  const Json header = parse(text, text + length);
  if (header.kind != Json::Kind::object) fail("the header must be a JSON object");
  const Json* metadata = header.find("__metadata__");
  const Json* format = metadata ? metadata->find("format") : nullptr;
  const Json* config = metadata ? metadata->find("config") : nullptr;
  if (format == nullptr || format->string != "dyncp-folded-1" || config == nullptr) {
    fail("must be a folded model: metadata with format dyncp-folded-1 and a config");
  }
  const auto parse_text = [](const std::string& json) { return parse(json.data(), json.data() + json.size()); };
  const Parsed parsed = parse_config(parse_text(config->string));
  const Geometry& g = parsed.geometry;
  FoldedFile file;
  file.view.geometry = g;
  if (const Json* calibration = metadata->find("calibration")) {
    file.calibration = parse_calibration(parse_text(calibration->string));
  }
  Tensors tensors(header, bytes + 8 + length, count - 8 - static_cast<int64_t>(length), file.copies);
  file.view.front_weight = tensors.take("front.weight", {g.channels, g.bins});
  file.view.front_bias = tensors.take("front.bias", {g.channels});
  file.view.back_weight = tensors.take("back.weight", {g.bins, g.channels});
  file.view.back_bias = tensors.take("back.bias", {g.bins});
  const int64_t gates = int64_t{g.channels} * g.gates_out + int64_t{g.hidden} * g.gates_hidden;
  for (int n = 0; n < g.blocks; ++n) {
    const std::string prefix = "blocks." + std::to_string(n) + ".";
    FoldedBlockView block{};
    block.dilation = parsed.dilations[n];
    block.w_in = tensors.take(prefix + "w_in", {g.hidden, g.channels});
    block.b_in = tensors.take(prefix + "b_in", {g.hidden});
    block.w_dw = tensors.take(prefix + "w_dw", {g.hidden, g.taps});
    block.b_dw = tensors.take(prefix + "b_dw", {g.hidden});
    block.w_out = tensors.take(prefix + "w_out", {g.channels, g.hidden});
    block.b_out = tensors.take(prefix + "b_out", {g.channels});
    if (g.has_prelu) {
      block.slope_in = tensors.take(prefix + "slope_in", {1});
      block.slope_dw = tensors.take(prefix + "slope_dw", {1});
    }
    if (g.gate_kind == GateKind::pooled) {
      block.gate_reduce = tensors.take(prefix + "gate.reduce.weight", {g.gate_width, g.channels});
      block.gate_reduce_bias = tensors.take(prefix + "gate.reduce.bias", {g.gate_width});
      block.gate_expand = tensors.take(prefix + "gate.expand.weight", {gates, g.gate_width});
      block.gate_expand_bias = tensors.take(prefix + "gate.expand.bias", {gates});
    } else if (g.gate_kind == GateKind::constant) {
      block.gate_expand_bias = tensors.take(prefix + "gate.score", {gates});
    }
    file.view.blocks.push_back(block);
  }
  if (tensors.taken() + 1 != header.members.size()) fail("must hold no tensors besides those of the config");
  return file;
}

std::vector<uint8_t> read_file(const std::string& path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  if (!file) throw std::runtime_error("model file: cannot open " + path);
  std::vector<uint8_t> bytes;
  uint8_t buffer[1 << 16];
  for (size_t got; (got = std::fread(buffer, 1, sizeof(buffer), file.get())) > 0;) {
    bytes.insert(bytes.end(), buffer, buffer + got);
  }
  if (std::ferror(file.get())) throw std::runtime_error("model file: cannot read " + path);
  return bytes;
}

}  // namespace dyncp
