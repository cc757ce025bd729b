// Offline kernel of the gated block: one tile of frames at a time, everything in between stays in cache.
//
// A tile takes the channels that are open at one of its frames and selects by the gate per frame.  Channels that are
// open at many frames share dense products over the whole tile; those that are open at few are computed for these
// frames alone, where that costs less.  Which is which depends on the gates and the place of the tile only.  The past
// of u is carried from tile to tile, or recomputed in the same way where a range of tiles begins, so results depend
// neither on the partition of the work nor on the number of threads.
//
// Where the processor has a matrix unit, gated_conv_unit.h does most of it.
#include "core/kernels/gated_conv.h"

#include <type_traits>

#include "core/kernels/block_rows.h"
#include "core/kernels/frame_products.h"
#include "core/kernels/gated_conv_unit.h"
#include "core/kernels/gates.h"
#include "core/kernels/offline_cost.h"
#include "core/kernels/pack.h"
#include "core/kernels/product.h"
#include "core/kernels/storage.h"
#include "core/simd.h"

namespace dyncp::DYNCP_ISA {
namespace {

// Room for the frames of a tile and a vector behind them.
constexpr int kFrameList = kTile + 2 * kLanes<float>;

template <class T, class Storage>
class Tiles : BlockRows<T, Storage> {
  using Rows = BlockRows<T, Storage>;
  using Rows::activate, Rows::call_, Rows::clear_history, Rows::convolve, Rows::convolves_in_registers_;
  using Rows::finish_u, Rows::for_each_past_window, Rows::for_each_tile, Rows::forget;
  using Rows::hidden_gate, Rows::hidden_varies_, Rows::history_, Rows::item_, Rows::out_gate, Rows::out_varies_;
  using Rows::past_, Rows::remember, Rows::remembers_, Rows::row_width_, Rows::skip, Rows::weights, Rows::window_at;
  using Rows::write, Rows::x_, Rows::x_at, Rows::y_, Rows::y_at;
  using typename Rows::Window;

 public:
  Tiles(const GatedConv& call, void* y, Arena arena) : Rows(call, y, arena) {
    // Columns of w_out would be read for all outputs, so they are only used where no output is gated.
    adds_columns_ = hidden_varies_ && call.out_gate.data == nullptr;
    dots_outputs_ = out_varies_ && !hidden_varies_;
    x_tile_ = arena.take<T>(call.channels * kTile);
    z_ = arena.take<T>(call.hidden * kTile);
    u_rows_ = arena.take<T>(kBlockRows * row_width_);
    sums_ = arena.take<T>(kBlockRows * kTile);
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
    bytes_ = arena.used;
  }

  int64_t bytes() const { return bytes_; }

  void run(int64_t begin, int64_t end) {
    if (adds_columns_) __builtin_memset(has_column_, 0, call_.hidden);
    const auto run_tile = [&](int64_t index, int64_t first, int64_t last) {
      is_first_ = index == begin;
      tile(first, last);
    };
    for_each_tile(begin, end, [&](int64_t first) { start(first); }, run_tile);
  }

 private:
  // Columns of w_out that are added to all frames before the next ones are, so that they stay in the first-level cache.
  static constexpr int64_t kColumnsAtOnce = 64;

  // A channel that is open at some frame of a tile: at which ones, as bits.
  struct OpenChannel {
    int32_t channel;
    uint64_t fresh;   // new frames of u
    uint64_t frames;  // frames of the tile
  };

  const T* w_in_row(int64_t i) const { return weights(call_.w_in) + open_[i].channel * call_.w_in_row_stride; }
  const T* w_out_row(int64_t i) const { return weights(call_.w_out) + out_[i].channel * call_.w_out_row_stride; }

  // Fills the history of a tile that has no predecessor in this range: u at [first - left, first + right), in the way
  // that the tiles before it do.
  void start(int64_t first) {
    clear_history();
    for_each_past_window(first, [&](const Window& window, int64_t begin, int64_t count) {
      list_channels(window);
      for (int64_t i = 0; i < open_count_; ++i) open_[i].fresh >>= begin - window.fresh;
      pack_x(begin, count);
      for_each_block([&](int64_t i, int rows) {
        expand(i, rows, begin, count);
        for (int r = 0; r < rows; ++r) {
          remember(open_[i + r].channel, u_rows_ + r * row_width_ + past_, begin, count, first);
        }
      });
    });
  }

  // Lists the open channels of a window in open_: first those that share products, then those that are computed for
  // their frames alone.
  void list_channels(const Window& window) {
    const auto gate = hidden_gate();
    const uint64_t fresh = lowest_bits(window.fresh_frames()), frames = lowest_bits(window.frames());
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
      const int in_u = __builtin_popcountll(u), in_z = __builtin_popcountll(z);
      const int n = in_u > in_z ? in_u : in_z;
      if (n > most) {
        open_[open_count_++] = {static_cast<int32_t>(channel), u, z};
      } else {
        sparse_[sparse++] = {static_cast<int32_t>(channel), u, z};
        saving += gain[n];
      }
    };
    for (int64_t first = 0; first < call_.hidden; first += 64) {
      const int64_t count = call_.hidden - first < 64 ? call_.hidden - first : 64;
      uint64_t of_u[64], of_z[64];
      uint64_t open = gate.bits_of_channels(first, count, window.begin, window.end, of_z);
      const uint64_t* u = of_z;
      if (call_.right() > 0) {
        open |= gate.bits_of_channels(first, count, window.fresh, window.fresh_end, of_u);
        u = of_u;
      }
      for (; open != 0; open &= open - 1) {
        const int i = __builtin_ctzll(open);
        list(first + i, u[i], of_z[i]);
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
    x_packed_ = packed_rows<T>(call_, x_at(0, begin), begin, count, x_tile_);
    if (dense_count_ < open_count_) {
      transpose_tile<T>(x_packed_, kTile, call_.channels, padded<T>(count), x_frames_, x_width_);
    }
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
    // Whole vectors: frames of the past are computed again, and must come out as they did in their own tile.
    if (call_.w_in != nullptr) multiply_in(i, rows, vectors * kLanes<T>, StoreSums<T>{fresh, row_width_});
    for (int r = 0; r < rows; ++r) {
      finish_u(open_[i + r].channel, open_[i + r].fresh, begin, frames, fresh + r * row_width_);
    }
  }

  // W_in x of the listed channels [i, i + rows) at the frames of x_packed_.
  template <class Finish>
  DYNCP_INLINE void multiply_in(int64_t i, int rows, int64_t frames, const Finish& finish) {
    const T* w[kBlockRows];
    list_rows<T>(rows, w, [&](int r) { return w_in_row(i + r); });
    // In the first tile the weights come from far away.
    for (int64_t later = i + rows; is_first_ && later < dense_count_ && later < i + 2 * rows; ++later) {
      prefetch(w_in_row(later), call_.channels);
    }
    product_frames<T>(rows, w, nullptr, call_.channels, x_packed_, frames, finish);
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

  void tile(int64_t begin, int64_t end) {
    const int64_t frames = end - begin;
    const Window window = window_at(begin);
    list_channels(window);
    forget_closed_rows();
    if (open_count_ == 0) {
      for (int64_t row = 0; row < call_.out_channels; ++row) skip(row, begin, frames);
      return;
    }
    if (window.fresh_frames() > 0) pack_x(window.fresh, window.fresh_frames());
    for_each_block([&](int64_t first, int rows) {
#if defined(__AVX2__)
      if constexpr (sizeof(T) == 4) {
        if (convolves_in_registers_ && first < dense_count_) return convolve_block(first, rows, frames);
      }
#endif
      expand(first, rows, window.fresh, window.fresh_frames());
      for (int r = 0; r < rows; ++r) {
        const OpenChannel& open = open_[first + r];
        convolve(open.channel, open.frames, window, u_rows_ + r * row_width_, z_ + (first + r) * kTile);
      }
    });
    prefetch_next(window);
    project(begin, frames);
  }

#if defined(__AVX2__)
  // z of the listed channels [first, first + rows) of a causal block.
  DYNCP_INLINE void convolve_block(int64_t first, int rows, int64_t frames) {
    if (call_.slope_in == nullptr) {
      multiply_in(first, rows, frames, Convolution<Slope::relu>(*this, first));
    } else {
      multiply_in(first, rows, frames, Convolution<Slope::at_most_one>(*this, first));
    }
    for (int r = 0; r < rows; ++r) remembers_[open_[first + r].channel] = 1;
  }

  // From sums to z of the listed channels from `first` on, for boolean gates, slopes of one kind, three taps, no
  // look-ahead and a reach of at most one vector.  u stays in registers: a shifted load of what was just stored would
  // have to wait for it.
  template <Slope kSlope>
  class Convolution {
   public:
    Convolution(const Tiles& tiles, int64_t first)
        : open_(tiles.open_ + first),
          b_in_(tiles.weights(tiles.call_.b_in)),
          b_dw_(tiles.weights(tiles.call_.b_dw)),
          w_dw_(tiles.weights(tiles.call_.w_dw)),
          slope_in_(kSlope == Slope::relu ? 0.0f : *tiles.weights(tiles.call_.slope_in)),
          slope_dw_(kSlope == Slope::relu ? 0.0f : *tiles.weights(tiles.call_.slope_dw)),
          near_(delay(tiles.call_.dilation)),
          far_(delay(2 * tiles.call_.dilation)),
          history_(tiles.history_),
          z_(tiles.z_ + first * kTile) {}

    template <int R, int V>
    DYNCP_INLINE void operator()(int first, const Vec<float> (&sums)[R][V]) const {
      const Vec<float> slope_in = broadcast(slope_in_), slope_dw = broadcast(slope_dw_);
      const Words near = near_, far = far_;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const int64_t channel = open_[r].channel;
        const Vec<float> b_in = broadcast(b_in_ == nullptr ? 0.0f : b_in_[channel]);
        const float b_dw = b_dw_ == nullptr ? 0.0f : b_dw_[channel];
        const float* w = w_dw_ + channel * 3;
        float* past = history_ + channel * kLanes<float>;
        Vec<float> before = load(past);
#pragma GCC unroll 3
        for (int v = 0; v < V; ++v) {
          const int64_t t = (first + v) * kLanes<float>;
          const OpenLanes lanes = open_lanes(open_[r].frames, t);
          const Vec<float> u = rectified<kSlope>(sums[r][v] + b_in, slope_in, lanes);
          const Vec<float> sum = three_taps(w, b_dw, before, u, far, near);
          store(z_ + r * kTile + t, rectified<kSlope>(sum, slope_dw, lanes));
          before = u;
        }
        // A tile that is not whole is the last one.
        store(past, before);
      }
    }

   private:
    const OpenChannel* open_;
    const float *b_in_, *b_dw_, *w_dw_;
    float slope_in_, slope_dw_;
    Words near_, far_;
    float* history_;
    float* z_;
  };
#endif

  // Asks for what the tile behind this one will read first.
  void prefetch_next(const Window& window) const {
    const Window next = window_at(window.begin + kTile);
    if (next.frames() == 0 || call_.w_in == nullptr) return;
    prefetch_tile(x_at(0, next.fresh), call_.x_channel_stride, call_.channels, next.fresh_frames(), 0, 1);
  }

  // Rows that are closed during this tile: their new frames of u are zeros.
  void forget_closed_rows() {
    if (open_count_ == call_.hidden) return;
    __builtin_memset(is_open_, 0, call_.hidden);
    for (int64_t i = 0; i < open_count_; ++i) is_open_[open_[i].channel] = 1;
    for (int64_t channel = 0; channel < call_.hidden; ++channel) {
      if (is_open_[channel] == 0) forget(channel);
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
    const bool hands_over = shared > 0 && hands_over_outputs(frames);
    if (has_columns) add_columns(shared, frames);

    const int64_t dense = list_outputs(begin, frames, shared);
    const RowBlocks blocks(dense);
    for (int64_t block = 0; block < blocks.blocks; ++block) {
      const T* w[kBlockRows];
      const int64_t first = blocks.begin(block);
      const int count = blocks.size(block);
      list_rows<T>(count, w, [&](int r) { return w_out_row(first + r); });
      for (int64_t later = first + count; is_first_ && later < dense && later < first + 2 * count; ++later) {
        if (call_.w_out_column_stride == 1 && 4 * shared >= call_.hidden) {
          prefetch(w_out_row(later), call_.hidden);
        } else {
          for (int64_t k = 0; k < shared; ++k) __builtin_prefetch(w_out_row(later) + columns[k]);
        }
      }
      uint64_t left = all;  // frames whose sums are in sums_, still to be written
      if (hands_over) {
        left = has_columns ? hand_over<true>(w, first, count, columns, shared, begin, frames, branch, closed != 0)
                           : hand_over<false>(w, first, count, columns, shared, begin, frames, branch, closed != 0);
        if (left == 0) continue;
      } else if (shared > 0) {
        product_frames<T>(count, w, columns, shared, z_, frames, StoreSums<T>{sums_, kTile});
      } else {
        __builtin_memset(sums_, 0, count * kTile * sizeof(T));
      }
      if (closed != 0) repair(w, count, columns, shared, frames, sums_);
      // What a product hands over, or not, is whole vectors.
      const int64_t step = hands_over ? kLanes<T> : frames;
      for (int r = 0; r < count; ++r) {
        const OpenChannel& out = out_[first + r];
        for (int64_t t = 0; t < frames; t += step) {
          if ((left >> t & 1) == 0) continue;
          const int64_t some = frames - t < step ? frames - t : step;
          const T* more = has_columns ? y_tile_ + out.channel * kTile + t : nullptr;
          const uint64_t open = (out.frames & branch) >> t & lowest_bits(some);
          write(out.channel, begin + t, some, sums_ + r * kTile + t, more, open);
        }
      }
    }
    if (dense < out_count_) project_frames(dense, columns, begin, frames, branch);
  }

  // Whether hand_over() takes the outputs of a tile: it writes whole vectors.  Of floats only, so that not every
  // product is there for every type.
  static constexpr bool kHandsOver = std::is_same<T, float>::value && std::is_same<Storage, float>::value;
  bool hands_over_outputs(int64_t frames) const {
    const bool has_room = frames % kLanes<T> == 0 || (call_.x_tile_stride != 0 && call_.y_tile_stride != 0);
    return kHandsOver && has_room && call_.residual && call_.b_out != nullptr && out_gate().values == nullptr;
  }

  // y of `count` listed outputs from `first` on, straight from the registers of their product.  Returns the frames of
  // vectors with a sum that is not finite: those of closed frames may need repair(), so they are in sums_ instead.
  template <bool kAdds>
  DYNCP_INLINE uint64_t hand_over(const T* const* w, int64_t first, int count, const int64_t* columns, int64_t depth,
                                  int64_t begin, int64_t frames, uint64_t branch, bool checks) const {
    uint64_t left = 0;
    if constexpr (kHandsOver) {
      product_frames<T>(count, w, columns, depth, z_, frames,
                        Output<kAdds>(*this, first, begin, branch, checks, &left));
    }
    return left;
  }

  // From sums to y, with what add_columns() found if kAdds.  As y may be x itself, nothing is written that would have
  // to be written again.  Beside that, nothing branches: code that does would not leave the sums in registers.
  template <bool kAdds>
  class Output {
   public:
    Output(const Tiles& tiles, int64_t first, int64_t begin, uint64_t branch, bool checks, uint64_t* left)
        : out_(tiles.out_ + first),
          branch_(branch),
          bias_(tiles.weights(tiles.call_.b_out)),
          more_(tiles.y_tile_),
          x_(tiles.x_at(0, begin)),
          x_stride_(tiles.x_.channel_stride),
          y_(tiles.y_at(0, begin)),
          y_stride_(tiles.y_.channel_stride),
          checks_(checks),
          sums_{tiles.sums_, kTile},
          left_(left) {}

    template <int R, int V>
    DYNCP_INLINE void operator()(int first, const Vec<T> (&sums)[R][V]) const {
      if (checks_ && !are_finite(sums)) {
        *left_ |= lowest_bits(V * kLanes<T>) << first * kLanes<T>;
        return sums_(first, sums);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const int64_t channel = out_[r].channel;
        const uint64_t open = out_[r].frames & branch_;
        const Vec<T> bias = broadcast(bias_[channel]);
        const T* more = more_ + channel * kTile;
        const Storage* x = x_ + channel * x_stride_;
        Storage* y = y_ + channel * y_stride_;
#pragma GCC unroll 3
        for (int v = 0; v < V; ++v) {
          const int64_t t = (first + v) * kLanes<T>;
          const Vec<T> sum = kAdds ? sums[r][v] + load(more + t) : sums[r][v];
          store(y + t, load(x + t) + keep_open<T>(open, t, sum + bias));
        }
      }
    }

   private:
    const OpenChannel* out_;
    uint64_t branch_;
    const T* bias_;
    const T* more_;
    const Storage* x_;
    int64_t x_stride_;
    Storage* y_;
    int64_t y_stride_;
    bool checks_;
    StoreSums<T> sums_;
    uint64_t* left_;
  };

  // Lists the open outputs in out_, first those that share products; writes the others.
  int64_t list_outputs(int64_t begin, int64_t frames, int64_t depth) {
    const auto gate = out_gate();
    const double whole = static_cast<double>(depth * padded<T>(frames));
    double saving = -cost_of_transpose(depth, kTile);
    int64_t dense = 0;
    int64_t sparse = 0;
    for (int64_t row = 0; row < call_.out_channels; ++row) {
      const uint64_t open = gate.bits(row, begin, begin + frames);
      if (open == 0) {
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

  // Of finite sums as well it may say no, where they overflow together.
  template <int R, int V>
  DYNCP_INLINE static bool are_finite(const Vec<T> (&sums)[R][V]) {
    Vec<T> all = zero<T>();
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) all += sums[r][v];
    }
    return are_zeros(all - all);
  }

  static bool is_finite(int count, int64_t frames, const T* rows) {
    Vec<T> zeros = zero<T>();
    for (int r = 0; r < count; ++r) {
      for (int v = 0; v < whole_vectors<T>(frames); ++v) {
        const Vec<T> sums = load(rows + r * kTile + v * kLanes<T>);
        zeros += sums - sums;
      }
    }
    return are_zeros(zeros);
  }

  DYNCP_INLINE static bool are_zeros(Vec<T> v) {
    const Mask<T> wrong = v != zero<T>();
    typename IntegerOf<T>::type any = 0;
    for (int lane = 0; lane < kLanes<T>; ++lane) any |= wrong[lane];
    return any == 0;
  }

  bool is_first_ = false;     // tile of this range
  bool adds_columns_;         // whether W_out may be applied frame by frame
  bool dots_outputs_;         // whether single outputs may be
  int64_t listed_item_ = -1;  // whose open channels are listed already and stay, because its gate is constant
  int64_t open_count_ = 0;
  int64_t dense_count_ = 0;
  int64_t out_count_ = 0;
  int64_t x_width_, y_width_, z_width_;  // channels in whole vectors
  T* x_tile_;                            // [channels][kTile]
  const T* x_packed_ = nullptr;          // the same, or x itself where it lies so
  T* z_;                                 // [open channels][kTile]
  T* u_rows_;                            // [kBlockRows][past_ + kTile]
  T* sums_;                              // [kBlockRows][kTile]
  OpenChannel* open_;                    // hidden channels of this tile, those that share products first
  OpenChannel* sparse_;                  // those that do not, while they are listed
  uint8_t* is_open_;                     // per hidden channel
  int64_t* columns_;                     // of the listed channels, in w_out
  OpenChannel* out_;                     // output channels of this tile
  OpenChannel* sparse_out_;
  T* x_frames_;          // [kTile][x_width_]: x_tile_ transposed
  T* z_frames_;          // [kTile][z_width_]: z_ transposed
  T* weight_row_;        // a row of w_out at the listed channels
  T* w_columns_;         // [hidden][y_width_]: columns of w_out
  uint8_t* has_column_;  // which of them are there
  T* y_frames_;          // [kTile][y_width_]
  T* y_tile_;            // [y_width_][kTile]: y_frames_ transposed
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

// Calls run(tiles) with the kernel that takes the call.
template <class Run>
auto with_tiles(const GatedConv& call, void* y, void* scratch, Run run) {
  return with_storage(call.dtype, [&](auto storage) {
    using Storage = decltype(storage);
    using T = typename ComputeOf<Storage>::type;
    const Arena arena{static_cast<char*>(scratch)};
    if constexpr (kHasMatrixUnit<T>) {
      if (UnitTiles<Storage>::takes(call)) {
        UnitTiles<Storage> tiles(call, y, arena);
        return run(tiles);
      }
    }
    Tiles<T, Storage> tiles(call, y, arena);
    return run(tiles);
  });
}

int64_t scratch_bytes(const GatedConv& call) {
  return with_tiles(call, nullptr, nullptr, [](auto& tiles) { return tiles.bytes(); });
}

void tiles(const GatedConv& call, void* y, int64_t begin, int64_t end, void* scratch) {
  with_tiles(call, y, scratch, [&](auto& tiles) { tiles.run(begin, end); });
}

}  // namespace

const GatedConvKernels gated_conv_kernels = {kTile, scratch_bytes, tiles, widen_values, open_channels};

}  // namespace dyncp::DYNCP_ISA
