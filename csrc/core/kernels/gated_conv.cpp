// Offline kernel of the gated block: one tile of frames at a time, everything in between stays in cache.
//
// A tile takes the channels that are open at one of its frames and selects by the gate per frame.  Channels that are
// open at many frames share dense products over the whole tile; those that are open at few are computed for these
// frames alone, where that costs less.  Where the processor has a matrix unit, all products are dense and run on it,
// and the tiles of a group share their lists of channels, because weights must be split for the unit.  All of this
// depends on the gates and the place of the tile only.  The past of u is carried from tile to tile, or recomputed in
// the same way where a range of tiles begins, so results depend neither on the partition of the work nor on the number
// of threads.
#include "core/kernels/gated_conv.h"

#include "core/kernels/frame_products.h"
#include "core/kernels/gates.h"
#include "core/kernels/matrix_unit.h"
#include "core/kernels/offline_cost.h"
#include "core/kernels/pack.h"
#include "core/kernels/product.h"
#include "core/kernels/storage.h"
#include "core/simd.h"

namespace dyncp::DYNCP_ISA {
namespace {

static_assert(kTile <= 64, "the frames of a tile are the bits of a word");

template <class T>
DYNCP_INLINE int64_t padded(int64_t count) {
  return whole_vectors<T>(count) * kLanes<T>;
}

// Room for the frames of a tile and a vector behind them.
constexpr int kFrameList = kTile + 2 * kLanes<float>;

template <class T, class Storage>
class Tiles {
 public:
  Tiles(const GatedConv& call, void* y, Arena arena)
      : call_(call),
        y_(static_cast<Storage*>(y)),
        uses_unit_(kHasMatrixUnit<T> && call.strategy != Strategy::frames && call.frames >= kLeastUnitFrames),
        expands_on_unit_(uses_unit_ && call.w_in != nullptr),
        x_split_(arena, expands_on_unit_ ? call.channels : 0),
        z_split_(arena, uses_unit_ ? call.hidden : 0),
        product_in_(arena, expands_on_unit_ ? call.hidden : 0, expands_on_unit_ ? call.channels : 0),
        product_out_(arena, uses_unit_ ? call.out_channels : 0, uses_unit_ ? call.hidden : 0) {
    past_ = padded<T>(call.reach());
    row_width_ = past_ + kTile;
    hidden_varies_ = call.hidden_gate.data != nullptr && call.hidden_gate.frame_stride != 0;
    out_varies_ = call.out_gate.data != nullptr && call.out_gate.frame_stride != 0;
    // Columns of w_out would be read for all outputs, so they are only used where no output is gated.
    adds_columns_ = hidden_varies_ && call.out_gate.data == nullptr && !uses_unit_;
    dots_outputs_ = out_varies_ && !hidden_varies_ && !uses_unit_;
    convolves_in_registers_ = call.taps == 3 && call.causal && past_ == kLanes<T> && call.hidden_gate.is_bool;
    x_tile_ = arena.take<T>(call.channels * kTile);
    z_ = arena.take<T>(call.hidden * kTile);
    u_rows_ = arena.take<T>((uses_unit_ ? 2 : 1) * kMostRows * row_width_);
    sums_ = arena.take<T>((uses_unit_ ? 2 : 1) * kMostRows * kTile);
    history_ = arena.take<T>(call.hidden * past_);
    remembers_ = arena.take<uint8_t>(call.hidden);
    open_ = arena.take<OpenChannel>(call.hidden);
    sparse_ = arena.take<OpenChannel>(call.hidden);
    is_open_ = arena.take<uint8_t>(call.hidden);
    columns_ = arena.take<int64_t>(call.hidden);
    out_ = arena.take<OpenChannel>(call.out_channels);
    sparse_out_ = arena.take<OpenChannel>(call.out_channels);
    x_width_ = padded<T>(call.channels);
    x_frames_ = arena.take<T>(hidden_varies_ && call.w_in != nullptr ? kTile * x_width_ : 0);
    z_width_ = padded<T>(call.hidden);
    z_frames_ = arena.take<T>(dots_outputs_ ? kTile * z_width_ : 0);
    weight_row_ = arena.take<T>(dots_outputs_ ? z_width_ : 0);
    y_width_ = padded<T>(call.out_channels);
    w_columns_ = arena.take<T>(adds_columns_ ? call.hidden * y_width_ : 0);
    has_column_ = arena.take<uint8_t>(adds_columns_ ? call.hidden : 0);
    y_frames_ = arena.take<T>(adds_columns_ ? kTile * y_width_ : 0);
    y_tile_ = arena.take<T>(adds_columns_ ? y_width_ * kTile : 0);
    group_hidden_ = arena.take<int32_t>(uses_unit_ && hidden_varies_ ? call.hidden : 0);
    group_out_ = arena.take<uint8_t>(uses_unit_ && out_varies_ ? call.out_channels : 0);
    bytes_ = arena.used;
  }

  int64_t bytes() const { return bytes_; }

  void run(int64_t begin, int64_t end) {
    if (adds_columns_) __builtin_memset(has_column_, 0, call_.hidden);
    const int64_t tiles = (call_.frames + kTile - 1) / kTile;
    for (int64_t index = begin; index < end; ++index) {
      item_ = index / tiles;
      const int64_t first = index % tiles * kTile;
      const bool continues = index > begin && first > 0;
      if (!continues) start(first);
      is_first_ = index == begin;
      has_next_ = index + 1 < end && first + kTile < call_.frames;
      tile(first, first + kTile < call_.frames ? first + kTile : call_.frames);
    }
    if constexpr (kHasMatrixUnit<T>) ProductIn::release();
  }

 private:
  // On the matrix unit x and the weights have the pieces of their storage type, z has those of a float.
  using XSplit = FramesOrNone<T, kPiecesOf<Storage>>;
  using ZSplit = FramesOrNone<T, kPiecesOf<float>>;
  using ProductIn = ProductOrNone<T, kPiecesOf<Storage>, kPiecesOf<Storage>>;
  using ProductOut = ProductOrNone<T, kPiecesOf<Storage>, kPiecesOf<float>>;

  // Rows of one block of products.
  static constexpr int kMostRows = ProductIn::kBlock > kBlockRows ? ProductIn::kBlock : kBlockRows;

  // Frames of a group: splitting a row of weights costs as much as a quarter of its products with one tile.
  static constexpr int64_t kGroup = 8 * kTile;

  // Columns of w_out that are added to all frames before the next ones are, so that they stay in the first-level cache.
  static constexpr int64_t kColumnsAtOnce = 64;

  // A channel that is open at some frame of a tile: at which ones, as bits.
  struct OpenChannel {
    int32_t channel;
    uint64_t fresh;   // new frames of u
    uint64_t frames;  // frames of the tile
  };

  // The frames of a tile, and the new frames of u that come with it: those run ahead of the tile by the look-ahead of a
  // centred convolution.
  struct Window {
    int64_t begin, end, fresh, fresh_end;
    int64_t frames() const { return end - begin; }
    int64_t fresh_frames() const { return fresh_end - fresh; }
  };

  Window window_at(int64_t begin) const {
    const auto inside = [&](int64_t t) { return t < 0 ? 0 : t < call_.frames ? t : call_.frames; };
    return {inside(begin), inside(begin + kTile), inside(begin + call_.right()), inside(begin + kTile + call_.right())};
  }

  const T* weights(const void* p) const { return static_cast<const T*>(p); }
  const T* w_in_row(int64_t i) const { return weights(call_.w_in) + open_[i].channel * call_.w_in_row_stride; }
  const T* w_out_row(int64_t i) const { return weights(call_.w_out) + out_[i].channel * call_.w_out_row_stride; }
  ItemGate<T, Storage> hidden_gate() const { return {call_.hidden_gate, item_}; }
  ItemGate<T, Storage> out_gate() const { return {call_.out_gate, item_}; }
  const Storage* x_row(int64_t channel) const {
    return static_cast<const Storage*>(call_.x) + item_ * call_.x_batch_stride + channel * call_.x_channel_stride;
  }

  Storage* y_row(int64_t row) const {
    const int64_t stride = call_.y_channel_stride == 0 ? call_.frames : call_.y_channel_stride;
    return y_ + (item_ * call_.out_channels + row) * stride;
  }

  // Fills the history of a tile that has no predecessor in this range: u at [first - left, first + right), in the way
  // that the tiles before it do.
  void start(int64_t first) {
    __builtin_memset(history_, 0, call_.hidden * past_ * sizeof(T));
    __builtin_memset(remembers_, 0, call_.hidden);
    const int64_t origin = first - call_.left();
    const int64_t back = (call_.reach() + kTile - 1) / kTile * kTile;
    for (int64_t before = first - back; before < first; before += kTile) {
      const Window window = window_at(before);
      const int64_t begin = window.fresh < origin ? origin : window.fresh;
      if (begin >= window.fresh_end) continue;
      const int64_t count = window.fresh_end - begin;
      list_channels(window);
      for (int64_t i = 0; i < open_count_; ++i) open_[i].fresh >>= begin - window.fresh;
      pack_x(begin, count);
      const auto remember = [&](int64_t i, const T* u) {
        const int64_t channel = open_[i].channel;
        __builtin_memcpy(history_ + channel * past_ + past_ - call_.reach() + (begin - origin), u + past_,
                         count * sizeof(T));
        remembers_[channel] = 1;
      };
      if constexpr (kHasMatrixUnit<T>) {
        if (expands_on_unit_) {
          set_rows_in();
          product_in_.multiply(x_split_, u_rows_ + past_, row_width_, [&](int64_t i, T* sums) {
            finish_u(open_[i], begin, count, sums);
            remember(i, sums - past_);
          });
          continue;
        }
      }
      for_each_block([&](int64_t i, int rows) {
        expand(i, rows, begin, count);
        for (int r = 0; r < rows; ++r) remember(i + r, u_rows_ + r * row_width_);
      });
    }
  }

  // Lists the open channels of a window in open_: first those that share products, then those that are computed for
  // their frames alone.
  void list_channels(const Window& window) {
    const auto gate = hidden_gate();
    const uint64_t fresh = lowest_bits(window.fresh_frames()), frames = lowest_bits(window.frames());
    if (uses_unit_ && hidden_varies_) return list_group_channels(window);
    if (!hidden_varies_) {
      if (listed_item_ != item_) {
        open_count_ = 0;
        for (int64_t channel = 0; channel < call_.hidden; ++channel) {
          if (gate.bits(channel, 0, 1) != 0) open_[open_count_++].channel = static_cast<int32_t>(channel);
        }
        listed_item_ = item_;
      }
      for (int64_t i = 0; i < open_count_; ++i) {
        open_[i].fresh = fresh;
        open_[i].frames = frames;
      }
      dense_count_ = open_count_;
      return;
    }

    // What a channel costs that is open at so many frames, beside its share of the dense products.
    const int64_t depth = call_.w_in == nullptr ? 0 : call_.channels;
    const int64_t outputs = adds_columns_ ? call_.out_channels : 0;
    const double whole =
        static_cast<double>(depth * padded<T>(window.fresh_frames()) + outputs * padded<T>(window.frames()));
    double gain[kTile + 1] = {};
    int most = 0;  // frames at which a channel is computed alone
    for (int n = 1; n <= kTile; ++n) {
      const double alone = (depth > 0 ? cost_of_dots(depth, n) : 0) + (outputs > 0 ? cost_of_column(outputs, n) : 0);
      gain[n] = whole - alone;
      if (alone < whole) most = n;
    }
    if (call_.strategy == Strategy::tile) most = 0;
    if (call_.strategy == Strategy::frames) most = kTile;

    double saving = -cost_of_transpose(depth + outputs, kTile);
    open_count_ = 0;
    int64_t sparse = 0;
    const auto list = [&](int64_t channel, uint64_t u, uint64_t z) {
      if ((u | z) == 0) return;
      const int in_u = __builtin_popcountll(u), in_z = __builtin_popcountll(z);
      const int n = in_u > in_z ? in_u : in_z;
      if (n > most) {
        open_[open_count_++] = {static_cast<int32_t>(channel), u, z};
      } else {
        sparse_[sparse++] = {static_cast<int32_t>(channel), u, z};
        saving += gain[n];
      }
    };
    if (gate.bools != nullptr && call_.right() == 0) {
      const uint8_t* bytes = gate.bools + window.begin;
      const int64_t count = window.frames();
      for (int64_t channel = 0; channel < call_.hidden; ++channel, bytes += gate.channel_stride) {
        const uint64_t bits = bits_of_bytes(bytes, count);
        list(channel, bits, bits);
      }
    } else {
      for (int64_t channel = 0; channel < call_.hidden; ++channel) {
        list(channel, gate.bits(channel, window.fresh, window.fresh_end), gate.bits(channel, window.begin, window.end));
      }
    }
    if (saving > 0 || call_.strategy == Strategy::frames) {
      dense_count_ = open_count_;
      __builtin_memcpy(open_ + open_count_, sparse_, sparse * sizeof(OpenChannel));
      open_count_ += sparse;
      return;
    }
    // In the order of the channels again, as without the other way.
    open_count_ += sparse;
    dense_count_ = open_count_;
    int64_t dense = open_count_ - sparse;
    for (int64_t to = open_count_ - 1; sparse > 0; --to) {
      const bool takes_sparse = dense == 0 || open_[dense - 1].channel < sparse_[sparse - 1].channel;
      open_[to] = takes_sparse ? sparse_[--sparse] : open_[--dense];
    }
  }

  // The same where the tiles of a group share their lists.
  void list_group_channels(const Window& window) {
    list_group(window.begin);
    const auto gate = hidden_gate();
    uint64_t any = 0;
    for (int64_t i = 0; i < group_hidden_count_; ++i) {
      const int32_t channel = group_hidden_[i];
      const uint64_t z = gate.bits(channel, window.begin, window.end);
      const uint64_t u = call_.right() == 0 ? z : gate.bits(channel, window.fresh, window.fresh_end);
      any |= u | z;
      open_[i] = {channel, u, z};
    }
    open_count_ = dense_count_ = any == 0 ? 0 : group_hidden_count_;
  }

  // Lists the channels and outputs that are open at some frame of the group that holds frame `begin`.
  void list_group(int64_t begin) {
    const int64_t first = begin / kGroup * kGroup;
    if (group_item_ == item_ && group_begin_ == first) return;
    group_item_ = item_;
    group_begin_ = first;
    const auto inside = [&](int64_t t) { return t < call_.frames ? t : call_.frames; };
    const int64_t end = inside(first + kGroup), fresh_end = inside(first + kGroup + call_.right());
    if (hidden_varies_) {
      const auto gate = hidden_gate();
      group_hidden_count_ = 0;
      for (int64_t channel = 0; channel < call_.hidden; ++channel) {
        if (!is_open_in(gate, channel, first, fresh_end)) continue;
        group_hidden_[group_hidden_count_++] = static_cast<int32_t>(channel);
      }
    }
    if (out_varies_) {
      const auto gate = out_gate();
      for (int64_t row = 0; row < call_.out_channels; ++row) group_out_[row] = is_open_in(gate, row, first, end);
    }
  }

  static bool is_open_in(const ItemGate<T, Storage>& gate, int64_t channel, int64_t begin, int64_t end) {
    for (; begin < end; begin += 64) {
      if (gate.bits(channel, begin, begin + 64 < end ? begin + 64 : end) != 0) return true;
    }
    return false;
  }

  // Calls body(first, rows) for blocks of the listed channels; no block holds both kinds.
  template <class Body>
  DYNCP_INLINE void for_each_block(Body body) {
    const RowBlocks dense(dense_count_), sparse(open_count_ - dense_count_);
    for (int64_t block = 0; block < dense.blocks + sparse.blocks; ++block) {
      const bool is_dense = block < dense.blocks;
      const int64_t index = is_dense ? block : block - dense.blocks;
      const RowBlocks& blocks = is_dense ? dense : sparse;
      body((is_dense ? 0 : dense_count_) + blocks.begin(index), blocks.size(index));
    }
  }

  void pack_x(int64_t begin, int64_t count) {
    if (call_.w_in == nullptr) return;
    if constexpr (kHasMatrixUnit<T>) {
      if (expands_on_unit_) {
        start_packing(begin, count, 1);
        packing_.step();
        return;
      }
    }
    pack_tile<T>(x_row(0) + begin, call_.x_channel_stride, call_.channels, count, x_tile_);
    if (dense_count_ < open_count_) {
      transpose_tile<T>(x_tile_, kTile, call_.channels, padded<T>(count), x_frames_, x_width_);
    }
  }

  void start_packing(int64_t begin, int64_t count, int64_t steps) {
    packing_.start(x_row(0) + begin, call_.x_channel_stride, call_.channels, count, steps, x_tile_, x_split_);
  }

  void set_rows_in() {
    product_in_.set_rows(
        weights(call_.w_in), [&](int64_t i) { return open_[i].channel * call_.w_in_row_stride; }, open_count_, nullptr,
        call_.channels);
  }

  // u of the listed channels [i, i + rows) at frames [begin, begin + frames), to the new part of u_rows_; zero behind.
  void expand(int64_t i, int rows, int64_t begin, int64_t frames) {
    T* fresh = u_rows_ + past_;
    if (frames == 0) {
      for (int r = 0; r < rows; ++r) __builtin_memset(fresh + r * row_width_, 0, kTile * sizeof(T));
      return;
    }
    if (call_.w_in != nullptr && i >= dense_count_) {
      for (int64_t later = i + rows; is_first_ && later < open_count_ && later < i + 2 * rows; ++later) {
        prefetch(w_in_row(later), call_.channels);
      }
      for (int r = 0; r < rows; ++r) expand_frames(open_[i + r], begin, frames, fresh + r * row_width_);
      return;
    }
    const int vectors = whole_vectors<T>(frames);
    if (call_.w_in != nullptr) multiply_in(i, rows, vectors);
    for (int r = 0; r < rows; ++r) finish_u(open_[i + r], begin, frames, fresh + r * row_width_);
  }

  // u of one channel at the new frames, from the product or from x; zero behind.
  DYNCP_INLINE void finish_u(const OpenChannel& open, int64_t begin, int64_t frames, T* u) {
    const auto gate = hidden_gate();
    if (call_.w_in == nullptr) {
      const Storage* source = x_row(open.channel) + begin;
      int64_t t = 0;
      for (; t + kLanes<T> <= frames; t += kLanes<T>) store(u + t, load(source + t));
      if (t < frames) store(u + t, load_first(source + t, frames - t));
    } else {
      activate(u, whole_vectors<T>(frames), call_.b_in, open.channel, call_.slope_in, open.fresh);
    }
    if (call_.w_in == nullptr || gate.values != nullptr) {
      gate.apply_bits(open.channel, begin, frames, open.fresh, u);
    }
    if (frames < kTile) __builtin_memset(u + frames, 0, (kTile - frames) * sizeof(T));
  }

  // W_in x of the listed channels [i, i + rows), to the new part of u_rows_.
  DYNCP_INLINE void multiply_in(int64_t i, int rows, int vectors) {
    const T* w[kBlockRows];
    for (int r = 0; r < rows; ++r) w[r] = w_in_row(i + r);
    // In the first tile the weights come from far away.
    for (int64_t later = i + rows; is_first_ && later < dense_count_ && later < i + 2 * rows; ++later) {
      prefetch(w_in_row(later), call_.channels);
    }
    product_block<T>(rows, w, nullptr, call_.channels, x_tile_, vectors, u_rows_ + past_, row_width_);
  }

  // The same for one channel, at its open frames only.
  DYNCP_INLINE void expand_frames(const OpenChannel& open, int64_t begin, int64_t frames, T* u) {
    if (open.fresh == 0) {
      __builtin_memset(u, 0, kTile * sizeof(T));
      return;
    }
    int32_t list[kFrameList];
    T values[kFrameList];
    const int64_t count = list_frames<T>(open.fresh, list);
    listed_dots<T>(weights(call_.w_in) + open.channel * call_.w_in_row_stride, call_.channels, x_frames_, x_width_,
                   list, count, values);
    activate(values, whole_vectors<T>(count), call_.b_in, open.channel, call_.slope_in, lowest_bits(count));
    spread_frames<T>(open.fresh, list, count, values, u);
    const auto gate = hidden_gate();
    if (gate.values != nullptr) gate.apply_bits(open.channel, begin, frames, open.fresh, u);
  }

  // act(row + bias) at the open frames, zero at the others.
  DYNCP_INLINE void activate(T* row, int vectors, const void* bias, int64_t channel, const void* slope, uint64_t open) {
    const Rectifier act(bias, channel, slope);
    for (int v = 0; v < vectors; ++v) {
      store(row + v * kLanes<T>, keep_open<T>(open, v * kLanes<T>, act(load(row + v * kLanes<T>))));
    }
  }

  // Adds the bias of a channel, then ReLU or PReLU.
  struct Rectifier {
    Rectifier(const void* biases, int64_t channel, const void* slopes)
        : bias(broadcast(biases == nullptr ? T(0) : static_cast<const T*>(biases)[channel])),
          has_slope(slopes != nullptr),
          slope(has_slope ? *static_cast<const T*>(slopes) : T(0)) {}
    DYNCP_INLINE Vec<T> operator()(Vec<T> sum) const {
      sum += bias;
      return has_slope ? prelu<T>(sum, slope) : relu<T>(sum);
    }
    Vec<T> bias;
    bool has_slope;
    T slope;
  };

  // z = act(DW(u) + b) at the open frames of one row, zero at the others; values of the gate are not multiplied yet.
  DYNCP_INLINE void depthwise(const T* u, int64_t channel, int vectors, uint64_t open, T* z) {
    const T* w = weights(call_.w_dw) + channel * call_.taps;
    const Rectifier act(call_.b_dw, channel, call_.slope_dw);
    const auto finish = [&](int v, Vec<T> sum) {
      store(z + v * kLanes<T>, keep_open<T>(open, v * kLanes<T>, act(sum)));
    };
    if (call_.taps == 3) {
      const Vec<T> w0 = broadcast(w[0]);
      const Vec<T> w1 = broadcast(w[1]);
      const Vec<T> w2 = broadcast(w[2]);
      for (int v = 0; v < vectors; ++v) {
        const T* at = u + v * kLanes<T>;
        finish(v, w2 * load(at + 2 * call_.dilation) + (w1 * load(at + call_.dilation) + (w0 * load(at) + zero<T>())));
      }
      return;
    }
    for (int v = 0; v < vectors; ++v) {
      Vec<T> sum = zero<T>();
      for (int64_t tap = 0; tap < call_.taps; ++tap) {
        sum = broadcast(w[tap]) * load(u + v * kLanes<T> + tap * call_.dilation) + sum;
      }
      finish(v, sum);
    }
  }

  void tile(int64_t begin, int64_t end) {
    const int64_t frames = end - begin;
    const Window window = window_at(begin);
    const bool is_packed = is_packed_;
    is_packed_ = false;
    list_channels(window);
    forget_closed_rows();
    if (open_count_ == 0) {
      for (int64_t row = 0; row < call_.out_channels; ++row) skip(row, begin, frames);
      return;
    }
    const bool has_fresh = window.fresh_frames() > 0;
    if (has_fresh && !is_packed) pack_x(window.fresh, window.fresh_frames());

    const bool on_unit = expands_on_unit_ && has_fresh;
    if constexpr (kHasMatrixUnit<T>) {
      if (uses_unit_) z_split_.announce(z_, open_count_, whole_vectors<T>(frames));
      if (on_unit) multiply_hidden(window);
    }
    if (!on_unit) {
      for_each_block([&](int64_t first, int rows) {
        expand(first, rows, window.fresh, window.fresh_frames());
        for (int r = 0; r < rows; ++r) convolve(first + r, window, u_rows_ + r * row_width_);
      });
      if constexpr (kHasMatrixUnit<T>) {
        if (uses_unit_) z_split_.split_all();
      }
    }
    if (!uses_unit_) prefetch_next(window);
    project(begin, frames);
  }

  // Asks for what the tile behind this one will read first.
  void prefetch_next(const Window& window) const {
    const Window next = window_at(window.begin + kTile);
    if (next.frames() == 0 || call_.w_in == nullptr) return;
    prefetch_tile(x_row(0) + next.fresh, call_.x_channel_stride, call_.channels, next.fresh_frames(), 0, 1);
  }

  // z of listed channel i from a row that holds the new frames of u; its past is put in front, and remembered.
  DYNCP_INLINE void convolve(int64_t i, const Window& window, T* row) {
    const OpenChannel& open = open_[i];
    T* past = history_ + open.channel * past_;
    const bool remembers = remembers_[open.channel] != 0;
    for (int64_t t = 0; t < past_; t += kLanes<T>) store(row + t, remembers ? load(past + t) : zero<T>());
    const int vectors = whole_vectors<T>(window.frames());
    T* z = z_ + i * kTile;
    if (open.frames != 0) {
      const auto gate = hidden_gate();
      depthwise(row + past_ - call_.reach(), open.channel, vectors, open.frames, z);
      if (gate.values != nullptr) gate.apply_bits(open.channel, window.begin, window.frames(), open.frames, z);
    } else {
      __builtin_memset(z, 0, vectors * kLanes<T> * sizeof(T));
    }
    for (int64_t t = 0; t < past_; t += kLanes<T>) store(past + t, load(row + kTile + t));
    remembers_[open.channel] = 1;
  }

  // The first half of a tile; z is split for the unit as soon as it is there.
  void multiply_hidden(const Window& window) {
    set_rows_in();
    product_in_.multiply(x_split_, u_rows_ + past_, row_width_, [&](int64_t i, T* sums) {
      if (convolves_in_registers_) {
        convolve_in_registers(i, window, sums);
      } else {
        finish_u(open_[i], window.fresh, window.fresh_frames(), sums);
        convolve(i, window, sums - past_);
      }
      if (i % 2 == 1 || i + 1 == open_count_) z_split_.split(i / 2 * 2);
    });
  }

  // What finish_u and convolve do for boolean gates, three taps and a reach of at most one vector, u staying in
  // registers: a shifted load of what was just stored would have to wait until the unit is done.
  DYNCP_INLINE void convolve_in_registers(int64_t i, const Window& window, const T* sums) {
    const OpenChannel& open = open_[i];
    const Rectifier in(call_.b_in, open.channel, call_.slope_in), dw(call_.b_dw, open.channel, call_.slope_dw);
    const T* w = weights(call_.w_dw) + open.channel * 3;
    const Vec<T> w0 = broadcast(w[0]), w1 = broadcast(w[1]), w2 = broadcast(w[2]);
    const int vectors = whole_vectors<T>(window.frames()), dilation = static_cast<int>(call_.dilation);
    T* past = history_ + open.channel * past_;
    T* z = z_ + i * kTile;
    Vec<T> before = remembers_[open.channel] != 0 ? load(past) : zero<T>();
    for (int v = 0; v < vectors; ++v) {
      const int64_t t = v * kLanes<T>;
      const Vec<T> u = keep_open<T>(open.fresh, t, in(load(sums + t)));
      const Vec<T> near = delayed(before, u, dilation), far = delayed(before, u, 2 * dilation);
      store(z + t, keep_open<T>(open.frames, t, dw(w2 * u + (w1 * near + (w0 * far + zero<T>())))));
      before = u;
    }
    // A tile that is not whole is the last one.
    store(past, before);
    remembers_[open.channel] = 1;
  }

  // Rows that are closed during this tile: their new frames of u are zeros.
  void forget_closed_rows() {
    if (open_count_ == call_.hidden) return;
    __builtin_memset(is_open_, 0, call_.hidden);
    for (int64_t i = 0; i < open_count_; ++i) is_open_[open_[i].channel] = 1;
    for (int64_t channel = 0; channel < call_.hidden; ++channel) {
      if (is_open_[channel] == 0 && remembers_[channel] != 0) {
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
    Storage* y = y_row(row) + begin;
    if (call_.residual) {
      __builtin_memcpy(y, x_row(row) + begin, frames * sizeof(Storage));
    } else {
      __builtin_memset(y, 0, frames * sizeof(Storage));
    }
  }

  void project(int64_t begin, int64_t frames) {
    // A frame at which no hidden channel is open skips the branch.
    const uint64_t all = lowest_bits(frames);
    uint64_t branch = hidden_varies_ ? 0 : all;
    uint64_t closed = 0;
    const int64_t shared = adds_columns_ ? dense_count_ : open_count_;
    if (hidden_varies_) {
      for (int64_t i = 0; i < shared; ++i) closed |= all & ~open_[i].frames;
      for (int64_t i = 0; i < open_count_; ++i) branch |= open_[i].frames;
    }
    if (branch == 0) {
      for (int64_t row = 0; row < call_.out_channels; ++row) skip(row, begin, frames);
      return;
    }

    // All channels in one list are in their own order.
    const bool in_order = shared == call_.hidden && dense_count_ == shared;
    const int64_t* columns = nullptr;
    if (!in_order || call_.w_out_column_stride != 1) {
      for (int64_t i = 0; i < shared; ++i) columns_[i] = open_[i].channel * call_.w_out_column_stride;
      columns = columns_;
    }
    const bool has_columns = shared < open_count_;
    if (has_columns) add_columns(shared, frames);

    const int64_t dense = list_outputs(begin, frames, shared);
    const int vectors = whole_vectors<T>(frames);
    if constexpr (kHasMatrixUnit<T>) {
      if (uses_unit_) return project_on_unit(columns, shared, begin, frames, branch, closed);
    }
    const RowBlocks blocks(dense);
    for (int64_t block = 0; block < blocks.blocks; ++block) {
      const T* w[kBlockRows];
      const int64_t first = blocks.begin(block);
      const int count = blocks.size(block);
      for (int r = 0; r < count; ++r) w[r] = w_out_row(first + r);
      for (int64_t later = first + count; is_first_ && later < dense && later < first + 2 * count; ++later) {
        if (call_.w_out_column_stride == 1 && 4 * shared >= call_.hidden) {
          prefetch(w_out_row(later), call_.hidden);
        } else {
          for (int64_t k = 0; k < shared; ++k) __builtin_prefetch(w_out_row(later) + columns[k]);
        }
      }
      if (shared > 0) {
        product_block<T>(count, w, columns, shared, z_, vectors, sums_, kTile);
        if (closed != 0) repair(w, count, columns, shared, frames, sums_);
      } else {
        __builtin_memset(sums_, 0, count * kTile * sizeof(T));
      }
      for (int r = 0; r < count; ++r) {
        const OpenChannel& out = out_[first + r];
        const T* more = has_columns ? y_tile_ + out.channel * kTile : nullptr;
        write(out.channel, begin, frames, sums_ + r * kTile, more, out.frames & branch);
      }
    }
    if (dense < out_count_) project_frames(dense, columns, begin, frames, branch);
  }

  // Listed outputs, all columns of which share products.
  void project_on_unit(const int64_t* columns, int64_t depth, int64_t begin, int64_t frames, uint64_t branch,
                       uint64_t closed) {
    product_out_.set_rows(
        weights(call_.w_out), [&](int64_t i) { return out_[i].channel * call_.w_out_row_stride; }, out_count_, columns,
        depth);
    // The next tile's x is packed meanwhile.
    const Window next = window_at(begin + kTile);
    const bool packs_next = expands_on_unit_ && has_next_ && next.fresh_frames() > 0;
    if (packs_next) start_packing(next.fresh, next.fresh_frames(), out_count_);
    const auto write_row = [&](int64_t i, T* sums) {
      if (packs_next) packing_.step();
      const OpenChannel& out = out_[i];
      if (out.frames == 0) {
        skip(out.channel, begin, frames);
      } else {
        write(out.channel, begin, frames, sums, nullptr, out.frames & branch);
      }
    };
    product_out_.multiply(z_split_, sums_, kTile, write_row, [&](int64_t i, T* sums) {
      const T* w = w_out_row(i);
      if (closed != 0) repair(&w, 1, columns, depth, frames, sums);
    });
    is_packed_ = packs_next && out_count_ > 0;
  }

  // Lists the open outputs in out_, first those that share products; writes the others.
  int64_t list_outputs(int64_t begin, int64_t frames, int64_t depth) {
    const auto gate = out_gate();
    const double whole = static_cast<double>(depth * padded<T>(frames));
    double saving = -cost_of_transpose(depth, kTile);
    int64_t dense = 0;
    int64_t sparse = 0;
    const bool has_group = uses_unit_ && out_varies_;
    if (has_group) list_group(begin);
    for (int64_t row = 0; row < call_.out_channels; ++row) {
      const uint64_t open = gate.bits(row, begin, begin + frames);
      if (has_group ? group_out_[row] == 0 : open == 0) {
        skip(row, begin, frames);
        continue;
      }
      const OpenChannel out = {static_cast<int32_t>(row), 0, open};
      const double alone = dots_outputs_ ? cost_of_dots(depth, __builtin_popcountll(open)) : whole;
      if (dots_outputs_ &&
          (call_.strategy == Strategy::frames || (call_.strategy == Strategy::automatic && alone < whole))) {
        sparse_out_[sparse++] = out;
        saving += whole - alone;
      } else {
        out_[dense++] = out;
      }
    }
    __builtin_memcpy(out_ + dense, sparse_out_, sparse * sizeof(OpenChannel));
    out_count_ = dense + sparse;
    return saving > 0 || call_.strategy == Strategy::frames ? dense : out_count_;
  }

  // Listed outputs from `first` on, at their open frames only.
  void project_frames(int64_t first, const int64_t* columns, int64_t begin, int64_t frames, uint64_t branch) {
    transpose_tile<T>(z_, kTile, open_count_, padded<T>(frames), z_frames_, z_width_);
    for (int64_t i = first; i < out_count_; ++i) {
      const OpenChannel& out = out_[i];
      const T* w = weights(call_.w_out) + out.channel * call_.w_out_row_stride;
      if (columns != nullptr) {
        for (int64_t k = 0; k < open_count_; ++k) weight_row_[k] = w[columns[k]];
        w = weight_row_;
      }
      int32_t list[kFrameList];
      T values[kFrameList];
      const int64_t count = list_frames<T>(out.frames, list);
      listed_dots<T>(w, open_count_, z_frames_, z_width_, list, count, values);
      spread_frames<T>(out.frames, list, count, values, sums_);
      write(out.channel, begin, frames, sums_, nullptr, out.frames & branch);
    }
  }

  // y_tile_ = W_out z over the listed channels from `first` on, each at its open frames only.
  void add_columns(int64_t first, int64_t frames) {
    __builtin_memset(y_frames_, 0, padded<T>(frames) * y_width_ * sizeof(T));
    for (; first < open_count_; first += kColumnsAtOnce) {
      const int64_t last = first + kColumnsAtOnce < open_count_ ? first + kColumnsAtOnce : open_count_;
      const T* w[kColumnsAtOnce];
      uint64_t rows_of_frame[kColumnsAtOnce] = {};
      for (int64_t i = first; i < last; ++i) {
        w[i - first] = column(open_[i].channel);
        rows_of_frame[i - first] = open_[i].frames;
      }
      transpose_bits(rows_of_frame);
      for (int64_t t = 0; t < frames; ++t) {
        add_rows<T>(w, y_width_, z_ + first * kTile + t, kTile, rows_of_frame[t], y_frames_ + t * y_width_);
      }
    }
    transpose_tile<T>(y_frames_, y_width_, padded<T>(frames), y_width_, y_tile_, kTile);
  }

  // A copy of one column of w_out in one piece.
  const T* column(int64_t channel) {
    const T* copy = w_columns_ + channel * y_width_;
    if (has_column_[channel] == 0) copy_columns(channel);
    return copy;
  }

  void copy_columns(int64_t channel) {
    // Neighbours share their cache lines, so they are copied together.
    const int64_t group = channel / kLanes<T> * kLanes<T>;
    if (call_.w_out_column_stride == 1 && group + kLanes<T> <= call_.hidden) {
      transpose_tile<T>(weights(call_.w_out) + group, call_.w_out_row_stride, call_.out_channels, kLanes<T>,
                        w_columns_ + group * y_width_, y_width_);
      __builtin_memset(has_column_ + group, 1, kLanes<T>);
      return;
    }
    T* copy = w_columns_ + channel * y_width_;
    const T* source = weights(call_.w_out) + channel * call_.w_out_column_stride;
    for (int64_t row = 0; row < call_.out_channels; ++row) copy[row] = source[row * call_.w_out_row_stride];
    for (int64_t row = call_.out_channels; row < y_width_; ++row) copy[row] = 0;
    has_column_[channel] = 1;
  }

  // The product multiplied the zeros of closed frames too, which is wrong only where a weight is not finite.  Such a
  // weight shows as a value that is not finite: sum those again, over the open channels of their frame.
  DYNCP_INLINE void repair(const T* const* w, int count, const int64_t* columns, int64_t depth, int64_t frames,
                           T* rows) const {
    if (is_finite(count, frames, rows)) return;
    for (int r = 0; r < count; ++r) {
      T* sums = rows + r * kTile;
      for (int64_t t = 0; t < frames; ++t) {
        if (sums[t] - sums[t] == T(0)) continue;
        T sum = 0;
        for (int64_t k = 0; k < depth; ++k) {
          if ((open_[k].frames >> t & 1) != 0)
            sum = w[r][columns == nullptr ? k : columns[k]] * z_[k * kTile + t] + sum;
        }
        sums[t] = sum;
      }
    }
  }

  static bool is_finite(int count, int64_t frames, const T* rows) {
    Mask<T> wrong = {};
    for (int r = 0; r < count; ++r) {
      for (int v = 0; v < whole_vectors<T>(frames); ++v) {
        const Vec<T> sums = load(rows + r * kTile + v * kLanes<T>);
        wrong |= (sums - sums) != zero<T>();
      }
    }
    typename IntegerOf<T>::type any = 0;
    for (int lane = 0; lane < kLanes<T>; ++lane) any |= wrong[lane];
    return any == 0;
  }

  // y = x + gate * (sums + more + bias) at the open frames, or without x; `more` may be null.
  DYNCP_INLINE void write(int64_t row, int64_t begin, int64_t frames, T* sums, const T* more, uint64_t open) {
    const auto gate = out_gate();
    const Vec<T> bias = broadcast(call_.b_out == nullptr ? T(0) : weights(call_.b_out)[row]);
    Storage* y = y_row(row) + begin;
    const Storage* x = call_.residual ? x_row(row) + begin : nullptr;
    if (gate.values != nullptr) {
      for (int64_t t = 0; t < frames; t += kLanes<T>) {
        const Vec<T> sum = more == nullptr ? load(sums + t) : load(sums + t) + load(more + t);
        store(sums + t, sum + bias);
      }
      gate.apply(row, begin, frames, Openness::some, sums);
      write_open(y, x, frames, sums, nullptr, zero<T>(), open);
    } else {
      write_open(y, x, frames, sums, more, bias, open);
    }
  }

  DYNCP_INLINE void write_open(Storage* y, const Storage* x, int64_t frames, const T* sums, const T* more, Vec<T> bias,
                               uint64_t open) {
    const bool every_frame = open == lowest_bits(frames);
    const auto value = [&](int64_t t) {
      const Vec<T> sum = more == nullptr ? load(sums + t) : load(sums + t) + load(more + t);
      const Vec<T> v = sum + bias;
      return every_frame ? v : keep_open<T>(open, t, v);
    };
    int64_t t = 0;
    for (; t + kLanes<T> <= frames; t += kLanes<T>) store(y + t, x == nullptr ? value(t) : load(x + t) + value(t));
    if (t < frames) {
      const Vec<T> v = value(t);
      store_first(y + t, x == nullptr ? v : load_first(x + t, frames - t) + v, frames - t);
    }
  }

  const GatedConv& call_;
  Storage* y_;
  int64_t item_ = 0;
  bool is_first_ = false;   // tile of this range
  bool has_next_ = false;   // whether this range goes on with the next tile of the item
  bool is_packed_ = false;  // whether x of this tile is packed already
  const bool uses_unit_;    // whether the products run on the matrix unit
  const bool expands_on_unit_;
  XSplit x_split_;
  PackingOrNone<T, Storage> packing_;
  ZSplit z_split_;
  ProductIn product_in_;
  ProductOut product_out_;
  bool hidden_varies_;  // in time
  bool out_varies_;
  bool adds_columns_;  // whether W_out may be applied frame by frame
  bool dots_outputs_;  // whether single outputs may be
  bool convolves_in_registers_;
  int64_t listed_item_ = -1;  // whose open channels are listed already and stay, because its gate is constant
  int64_t group_item_ = -1;   // whose group is listed, and where that begins
  int64_t group_begin_ = -1;
  int64_t open_count_ = 0;
  int64_t dense_count_ = 0;
  int64_t out_count_ = 0;
  int64_t past_;  // frames of history in front of a row of u: whole vectors, right-aligned
  int64_t row_width_;
  int64_t x_width_, y_width_, z_width_;  // channels in whole vectors
  T* x_tile_;                            // [channels][kTile]
  T* z_;                                 // [open channels][kTile]
  T* u_rows_;                            // [kMostRows][past_ + kTile], twice with a unit
  T* sums_;                              // [kMostRows][kTile], likewise
  T* history_;                           // [hidden][past_]: u at the frames before the new ones
  uint8_t* remembers_;                   // per hidden channel: whether history_ holds anything but zeros
  OpenChannel* open_;                    // hidden channels of this tile, those that share products first
  OpenChannel* sparse_;                  // those that do not, while they are listed
  uint8_t* is_open_;                     // per hidden channel
  int64_t* columns_;                     // of the listed channels, in w_out
  OpenChannel* out_;                     // output channels of this tile
  OpenChannel* sparse_out_;
  T* x_frames_;            // [kTile][x_width_]: x_tile_ transposed
  T* z_frames_;            // [kTile][z_width_]: z_ transposed
  T* weight_row_;          // a row of w_out at the listed channels
  T* w_columns_;           // [hidden][y_width_]: columns of w_out
  uint8_t* has_column_;    // which of them are there
  T* y_frames_;            // [kTile][y_width_]
  T* y_tile_;              // [y_width_][kTile]: y_frames_ transposed
  int32_t* group_hidden_;  // hidden channels of the group
  int64_t group_hidden_count_ = 0;
  uint8_t* group_out_;  // per output: whether it is one of the group
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
