// Offline kernel of the gated block: one tile of frames at a time, everything in between stays in cache.
//
// A tile takes the channels that are open at one of its frames, computes only those rows, and selects by the gate per
// frame.  The past of u is carried from tile to tile, or recomputed where a range of tiles begins; both give the same
// bits, so results depend neither on the partition of the work nor on the number of threads.
#include "core/kernels/gated_conv.h"

#include "core/kernels/gates.h"
#include "core/kernels/product.h"
#include "core/kernels/storage.h"
#include "core/simd.h"

namespace dyncp::DYNCP_ISA {
namespace {

template <class T, class Storage>
class Tiles {
 public:
  Tiles(const GatedConv& call, void* y, Arena arena) : call_(call), y_(static_cast<Storage*>(y)) {
    past_ = whole_vectors<T>(call.reach()) * kLanes<T>;
    row_width_ = past_ + kTile;
    x_tile_ = arena.take<T>(call.channels * kTile);
    z_ = arena.take<T>(call.hidden * kTile);
    u_rows_ = arena.take<T>(kBlockRows * row_width_);
    sums_ = arena.take<T>(kBlockRows * kTile);
    history_ = arena.take<T>(call.hidden * past_);
    remembers_ = arena.take<uint8_t>(call.hidden);
    open_rows_ = arena.take<int32_t>(call.hidden);
    openness_ = arena.take<Openness>(call.hidden);
    columns_ = arena.take<int64_t>(call.hidden);
    out_rows_ = arena.take<int32_t>(call.out_channels);
    out_openness_ = arena.take<Openness>(call.out_channels);
    bytes_ = arena.used;
  }

  int64_t bytes() const { return bytes_; }

  void run(int64_t begin, int64_t end) {
    const int64_t tiles = (call_.frames + kTile - 1) / kTile;
    for (int64_t index = begin; index < end; ++index) {
      item_ = index / tiles;
      const int64_t first = index % tiles * kTile;
      const bool continues = index > begin && first > 0;
      if (!continues) start(first);
      tile(first, first + kTile < call_.frames ? first + kTile : call_.frames);
    }
  }

 private:
  const T* weights(const void* p) const { return static_cast<const T*>(p); }
  ItemGate<T, Storage> hidden_gate() const { return {call_.hidden_gate, item_}; }
  ItemGate<T, Storage> out_gate() const { return {call_.out_gate, item_}; }
  const Storage* x_row(int64_t channel) const {
    return static_cast<const Storage*>(call_.x) + item_ * call_.x_batch_stride + channel * call_.x_channel_stride;
  }

  // Fills the history of a tile that has no predecessor in this range: u at [first - left, first + right).
  void start(int64_t first) {
    __builtin_memset(history_, 0, call_.hidden * past_ * sizeof(T));
    __builtin_memset(remembers_, 0, call_.hidden);
    const int64_t origin = first - call_.left();
    const int64_t end = first + call_.right() < call_.frames ? first + call_.right() : call_.frames;
    for (int64_t begin = origin < 0 ? 0 : origin; begin < end; begin += kTile) {
      const int64_t count = end - begin < kTile ? end - begin : kTile;
      const int64_t rows = find_open_rows(begin, begin + count);
      pack_x(begin, count);
      const RowBlocks blocks(rows);
      for (int64_t block = 0; block < blocks.blocks; ++block) {
        expand(blocks.begin(block), blocks.size(block), begin, count);
        for (int r = 0; r < blocks.size(block); ++r) {
          const int64_t channel = open_rows_[blocks.begin(block) + r];
          __builtin_memcpy(history_ + channel * past_ + past_ - call_.reach() + (begin - origin),
                           u_rows_ + r * row_width_ + past_, count * sizeof(T));
          remembers_[channel] = 1;
        }
      }
    }
  }

  int64_t find_open_rows(int64_t begin, int64_t end) {
    const auto gate = hidden_gate();
    const bool lasts = !gate.exists() || gate.is_constant();
    if (lasts && listed_item_ == item_) return listed_rows_;
    int64_t rows = 0;
    for (int64_t channel = 0; channel < call_.hidden; ++channel) {
      const Openness open = gate.over(channel, begin, end);
      if (open == Openness::none) continue;
      open_rows_[rows] = static_cast<int32_t>(channel);
      openness_[rows++] = open;
    }
    listed_item_ = lasts ? item_ : -1;
    listed_rows_ = rows;
    return rows;
  }

  void pack_x(int64_t begin, int64_t count) {
    if (call_.w_in == nullptr) return;
    const int whole = static_cast<int>(count / kLanes<T>);
    const int64_t rest = count % kLanes<T>;
    for (int64_t channel = 0; channel < call_.channels; ++channel) {
      const Storage* source = x_row(channel) + begin;
      T* target = x_tile_ + channel * kTile;
      for (int v = 0; v < whole; ++v) store(target + v * kLanes<T>, load(source + v * kLanes<T>));
      if (rest > 0) store(target + whole * kLanes<T>, load_first(source + whole * kLanes<T>, rest));
    }
  }

  // u of the open rows [row, row + count) at frames [begin, begin + frames), to the new part of u_rows_; zero behind.
  void expand(int64_t row, int count, int64_t begin, int64_t frames) {
    const int vectors = whole_vectors<T>(frames);
    T* fresh = u_rows_ + past_;
    const T* w[kBlockRows];
    if (call_.w_in != nullptr) {
      for (int r = 0; r < count; ++r) w[r] = weights(call_.w_in) + open_rows_[row + r] * call_.w_in_row_stride;
      product_block<T>(count, w, nullptr, call_.channels, x_tile_, vectors, fresh, row_width_);
    }
    const auto gate = hidden_gate();
    for (int r = 0; r < count; ++r) {
      const int64_t channel = open_rows_[row + r];
      T* u = fresh + r * row_width_;
      if (call_.w_in == nullptr) {
        const Storage* source = x_row(channel) + begin;
        int64_t t = 0;
        for (; t + kLanes<T> <= frames; t += kLanes<T>) store(u + t, load(source + t));
        if (t < frames) store(u + t, load_first(source + t, frames - t));
      } else {
        activate(u, vectors, call_.b_in, channel, call_.slope_in);
      }
      gate.apply(channel, begin, frames, openness_[row + r], u);
      if (frames < kTile) __builtin_memset(u + frames, 0, (kTile - frames) * sizeof(T));
    }
  }

  DYNCP_INLINE void activate(T* row, int vectors, const void* bias, int64_t channel, const void* slope) {
    const Vec<T> b = broadcast(bias == nullptr ? T(0) : weights(bias)[channel]);
    if (slope == nullptr) {
      for (int v = 0; v < vectors; ++v) store(row + v * kLanes<T>, relu<T>(load(row + v * kLanes<T>) + b));
    } else {
      const T s = *weights(slope);
      for (int v = 0; v < vectors; ++v) store(row + v * kLanes<T>, prelu<T>(load(row + v * kLanes<T>) + b, s));
    }
  }

  // z = act(DW(u) + b) for one row, before its gate.
  DYNCP_INLINE void depthwise(const T* u, int64_t channel, int vectors, T* z) {
    const T* w = weights(call_.w_dw) + channel * call_.taps;
    const T bias = call_.b_dw == nullptr ? T(0) : weights(call_.b_dw)[channel];
    const T slope = call_.slope_dw == nullptr ? T(0) : *weights(call_.slope_dw);
    if (call_.taps == 3 && call_.slope_dw != nullptr) {
      const Vec<T> w0 = broadcast(w[0]);
      const Vec<T> w1 = broadcast(w[1]);
      const Vec<T> w2 = broadcast(w[2]);
      for (int v = 0; v < vectors; ++v) {
        const T* at = u + v * kLanes<T>;
        const Vec<T> sum =
            w2 * load(at + 2 * call_.dilation) + (w1 * load(at + call_.dilation) + (w0 * load(at) + zero<T>()));
        store(z + v * kLanes<T>, prelu<T>(sum + broadcast(bias), slope));
      }
      return;
    }
    for (int v = 0; v < vectors; ++v) {
      Vec<T> sum = zero<T>();
      for (int64_t tap = 0; tap < call_.taps; ++tap) {
        sum = broadcast(w[tap]) * load(u + v * kLanes<T> + tap * call_.dilation) + sum;
      }
      sum += broadcast(bias);
      store(z + v * kLanes<T>, call_.slope_dw == nullptr ? relu<T>(sum) : prelu<T>(sum, slope));
    }
  }

  void tile(int64_t begin, int64_t end) {
    const int64_t frames = end - begin;
    const int vectors = whole_vectors<T>(frames);
    // New frames of u run ahead of the tile by the look-ahead of a centred convolution.
    const int64_t fresh = begin + call_.right();
    int64_t fresh_frames = call_.frames - fresh < kTile ? call_.frames - fresh : kTile;
    if (fresh_frames < 0) fresh_frames = 0;
    const int64_t seen_end = fresh + fresh_frames > end ? fresh + fresh_frames : end;

    const int64_t rows = find_open_rows(begin, seen_end);
    forget_closed_rows(rows);
    if (rows == 0) {
      for (int64_t row = 0; row < call_.out_channels; ++row) skip(row, begin, frames);
      return;
    }
    if (fresh_frames > 0) pack_x(fresh, fresh_frames);

    const auto gate = hidden_gate();
    const RowBlocks blocks(rows);
    for (int64_t block = 0; block < blocks.blocks; ++block) {
      const int64_t first = blocks.begin(block);
      recall(first, blocks.size(block));
      expand(first, blocks.size(block), fresh, fresh_frames);
      for (int r = 0; r < blocks.size(block); ++r) {
        const int64_t channel = open_rows_[first + r];
        const T* u = u_rows_ + r * row_width_;
        T* z = z_ + (first + r) * kTile;
        depthwise(u + past_ - call_.reach(), channel, vectors, z);
        gate.apply(channel, begin, frames, openness_[first + r], z);
        T* past = history_ + channel * past_;
        for (int64_t t = 0; t < past_; t += kLanes<T>) store(past + t, load(u + kTile + t));
        remembers_[channel] = 1;
      }
    }
    project(rows, begin, frames);
  }

  // Puts the past of u in front of the rows of a block.
  void recall(int64_t first, int count) {
    for (int r = 0; r < count; ++r) {
      const int64_t channel = open_rows_[first + r];
      const T* past = history_ + channel * past_;
      T* u = u_rows_ + r * row_width_;
      const bool remembers = remembers_[channel] != 0;
      for (int64_t t = 0; t < past_; t += kLanes<T>) store(u + t, remembers ? load(past + t) : zero<T>());
    }
  }

  // Rows that are closed during this tile: their new frames of u are zeros.
  void forget_closed_rows(int64_t rows) {
    int64_t next = 0;
    for (int64_t channel = 0; channel < call_.hidden; ++channel) {
      if (next < rows && open_rows_[next] == channel) {
        ++next;
      } else if (remembers_[channel] != 0) {
        T* past = history_ + channel * past_;
        const int64_t kept = past_ > kTile ? past_ - kTile : 0;
        if (kept > 0) __builtin_memmove(past, past + kTile, kept * sizeof(T));
        __builtin_memset(past + kept, 0, (past_ - kept) * sizeof(T));
        remembers_[channel] = kept > 0;
      }
    }
  }

  // y of a row whose branch is pruned throughout the tile.
  void skip(int64_t row, int64_t begin, int64_t frames) {
    Storage* y = y_ + (item_ * call_.out_channels + row) * call_.frames + begin;
    if (call_.residual) {
      __builtin_memcpy(y, x_row(row) + begin, frames * sizeof(Storage));
    } else {
      __builtin_memset(y, 0, frames * sizeof(Storage));
    }
  }

  void project(int64_t rows, int64_t begin, int64_t frames) {
    // A frame at which no hidden channel is open skips the branch.  Only gates that change in time can have such frames
    // beside others.
    const auto gate = hidden_gate();
    bool mixed = false;
    bool every_frame = false;
    for (int64_t k = 0; k < rows; ++k) {
      mixed = mixed || openness_[k] != Openness::all;
      every_frame = every_frame || openness_[k] == Openness::all;
    }
    uint8_t branch[kTile] = {};
    for (int64_t k = 0; k < rows && !every_frame; ++k) {
      gate.mark_open(open_rows_[k], begin, frames, branch);
      every_frame = openness(branch, frames) == Openness::all;
    }

    const int64_t* columns = nullptr;
    if (gate.exists() || call_.w_out_column_stride != 1) {
      for (int64_t k = 0; k < rows; ++k) columns_[k] = open_rows_[k] * call_.w_out_column_stride;
      columns = columns_;
    }

    const auto out = out_gate();
    int64_t out_rows = 0;
    for (int64_t row = 0; row < call_.out_channels; ++row) {
      const Openness open = out.over(row, begin, begin + frames);
      if (open == Openness::none) {
        skip(row, begin, frames);
      } else {
        out_rows_[out_rows] = static_cast<int32_t>(row);
        out_openness_[out_rows++] = open;
      }
    }

    const int vectors = whole_vectors<T>(frames);
    const RowBlocks blocks(out_rows);
    for (int64_t block = 0; block < blocks.blocks; ++block) {
      const T* w[kBlockRows];
      const int64_t first = blocks.begin(block);
      const int count = blocks.size(block);
      for (int r = 0; r < count; ++r) w[r] = weights(call_.w_out) + out_rows_[first + r] * call_.w_out_row_stride;
      product_block<T>(count, w, columns, rows, z_, vectors, sums_, kTile);
      for (int r = 0; r < count; ++r) {
        const int64_t row = out_rows_[first + r];
        T* sums = sums_ + r * kTile;
        if (mixed) repair(w[r], columns, rows, begin, frames, sums);
        const T bias = call_.b_out == nullptr ? T(0) : weights(call_.b_out)[row];
        if (every_frame && out.values == nullptr && out_openness_[first + r] == Openness::all) {
          write(row, begin, frames, sums, bias);
          continue;
        }
        for (int v = 0; v < vectors; ++v) store(sums + v * kLanes<T>, load(sums + v * kLanes<T>) + broadcast(bias));
        out.apply(row, begin, frames, out_openness_[first + r], sums);
        if (!every_frame) {
          for (int v = 0; v < vectors; ++v) {
            T* at = sums + v * kLanes<T>;
            store(at, select(load_mask<T>(branch + v * kLanes<T>), load(at), zero<T>()));
          }
        }
        write(row, begin, frames, sums, T(0));
      }
    }
  }

  // The product multiplied the zeros of closed frames too, which is wrong only where a weight is not finite.  Such a
  // weight shows as a value that is not finite: sum those again, over the open channels of their frame.
  DYNCP_INLINE void repair(const T* w, const int64_t* columns, int64_t rows, int64_t begin, int64_t frames, T* sums) {
    Vec<T> check = zero<T>();
    for (int v = 0; v < whole_vectors<T>(frames); ++v) check = load(sums + v * kLanes<T>) * T(0) + check;
    const T total = sum_of_lanes<T>(check);
    if (total == T(0)) return;
    const auto gate = hidden_gate();
    for (int64_t t = 0; t < frames; ++t) {
      if (sums[t] - sums[t] == T(0)) continue;
      T sum = 0;
      for (int64_t k = 0; k < rows; ++k) {
        if (gate.is_open_at(open_rows_[k], begin + t)) sum = w[columns[k]] * z_[k * kTile + t] + sum;
      }
      sums[t] = sum;
    }
  }

  // y = x + (branch + bias), or without x.
  DYNCP_INLINE void write(int64_t row, int64_t begin, int64_t frames, const T* branch, T bias) {
    Storage* y = y_ + (item_ * call_.out_channels + row) * call_.frames + begin;
    const Storage* x = call_.residual ? x_row(row) + begin : nullptr;
    int64_t t = 0;
    for (; t + kLanes<T> <= frames; t += kLanes<T>) {
      const Vec<T> v = load(branch + t) + broadcast(bias);
      store(y + t, x == nullptr ? v : load(x + t) + v);
    }
    if (t < frames) {
      const Vec<T> v = load(branch + t) + broadcast(bias);
      store_first(y + t, x == nullptr ? v : load_first(x + t, frames - t) + v, frames - t);
    }
  }

  const GatedConv& call_;
  Storage* y_;
  int64_t item_ = 0;
  int64_t listed_item_ = -1;  // whose open rows are listed already and stay, because its gate is constant
  int64_t listed_rows_ = 0;
  int64_t past_;  // frames of history in front of a row of u: whole vectors, right-aligned
  int64_t row_width_;
  T* x_tile_;           // [channels][kTile]
  T* z_;                // [open rows][kTile]
  T* u_rows_;           // [kBlockRows][past_ + kTile]
  T* sums_;             // [kBlockRows][kTile]
  T* history_;          // [hidden][past_]: u at the frames before the new ones
  uint8_t* remembers_;  // per hidden channel: whether history_ holds anything but zeros
  int32_t* open_rows_;  // hidden channels of this tile
  Openness* openness_;  // of those
  int64_t* columns_;    // of those, in w_out
  int32_t* out_rows_;   // output channels of this tile
  Openness* out_openness_;
  int64_t bytes_;
};

void widen_values(DType dtype, const void* source, int64_t source_stride, float* target, int64_t target_stride,
                  int64_t count) {
  with_storage(dtype, [&](auto storage) {
    using Storage = decltype(storage);
    if constexpr (sizeof(Storage) == 2) {
      const Storage* from = static_cast<const Storage*>(source);
      int64_t i = 0;
      if (source_stride == 1 && target_stride == 1) {
        for (; i + kLanes<float> <= count; i += kLanes<float>) store(target + i, load(from + i));
      }
      for (; i < count; ++i) target[i * target_stride] = widen(from[i * source_stride]);
    }
  });
}

int64_t open_channels(const GatedConv& call, const Gate& gate, int64_t channels, int32_t* list) {
  return with_storage(call.dtype, [&](auto storage) {
    using Storage = decltype(storage);
    int64_t found = 0;
    for (int64_t channel = 0; channel < channels; ++channel) {
      for (int64_t item = 0; item < call.batch; ++item) {
        const ItemGate<typename ComputeOf<Storage>::type, Storage> item_gate(gate, item);
        if (item_gate.over(channel, 0, call.frames) == Openness::none) continue;
        list[found++] = static_cast<int32_t>(channel);
        break;
      }
    }
    return found;
  });
}

int64_t scratch_bytes(const GatedConv& call) {
  return with_storage(call.dtype, [&](auto storage) {
    using Storage = decltype(storage);
    return Tiles<typename ComputeOf<Storage>::type, Storage>(call, nullptr, Arena{nullptr}).bytes();
  });
}

void tiles(const GatedConv& call, void* y, int64_t begin, int64_t end, void* scratch) {
  with_storage(call.dtype, [&](auto storage) {
    using Storage = decltype(storage);
    Tiles<typename ComputeOf<Storage>::type, Storage>(call, y, Arena{static_cast<char*>(scratch)}).run(begin, end);
  });
}

}  // namespace

const GatedConvKernels gated_conv_kernels = {kTile, scratch_bytes, tiles, widen_values, open_channels};

}  // namespace dyncp::DYNCP_ISA
