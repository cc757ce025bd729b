// A tile of the gated block on the matrix unit of the processor.
//
// All products are dense: a tile takes the channels that are open at one of its frames and selects by the gate per
// frame.  Weights must be split for the unit, so neighbouring tiles share their lists of channels.
#pragma once

#include "core/kernels/block_rows.h"
#include "core/kernels/matrix_unit.h"
#include "core/kernels/open_list.h"

namespace dyncp::DYNCP_ISA {

template <class Storage>
class UnitTiles;

#if defined(__AMX_BF16__)

static_assert(kTile == GateWords::kFrames, "the open frames of a tile are one word");

template <class Storage>
class UnitTiles : BlockRows<float, Storage> {
  using Rows = BlockRows<float, Storage>;
  using Rows::call_, Rows::clear_history, Rows::convolve, Rows::convolves_in_registers_, Rows::finish_u;
  using Rows::for_each_past_window, Rows::for_each_tile, Rows::forget, Rows::hidden_gate, Rows::hidden_varies_;
  using Rows::history_, Rows::item_, Rows::out_gate, Rows::out_varies_, Rows::past_;
  using Rows::remember, Rows::remembers_, Rows::row_width_, Rows::skip, Rows::weights, Rows::window_at, Rows::write;
  using Rows::x_at, Rows::y_at;
  using typename Rows::Window;

 public:
  UnitTiles(const GatedConv& call, void* y, Arena arena)
      : Rows(call, y, arena),
        hidden_(arena, call.hidden, hidden_varies_),
        out_(arena, call.out_channels, out_varies_),
        x_split_(arena, call.w_in == nullptr ? 0 : call.channels),
        z_split_(arena, call.hidden),
        product_in_(arena, call.w_in == nullptr ? 0 : call.hidden, call.channels),
        product_out_(arena, call.out_channels, call.hidden) {
    u_rows_ = arena.take<float>(call.hidden * row_width_);
    z_rows_ = arena.take<float>(2 * kTile);
    columns_ = arena.take<int64_t>(call.hidden);
    u_open_ = arena.take<uint64_t>(call.hidden);
    z_open_ = arena.take<uint64_t>(call.hidden);
    rows_ = arena.take<HiddenRow>(call.hidden);
    out_open_ = arena.take<uint64_t>(call.out_channels);
    zeros_ = arena.take<float>(zeros());
    bytes_ = arena.used;
  }

  static bool takes(const GatedConv& call) {
    return call.strategy != Strategy::frames && pays_for_unit(call.batch, call.frames);
  }

  int64_t bytes() const { return bytes_; }

  void run(int64_t begin, int64_t end) {
    __builtin_memset(zeros_, 0, zeros() * sizeof(float));
    const auto run_tile = [&](int64_t index, int64_t first, int64_t last) {
      has_next_ = index + 1 < end && last < call_.frames;
      tile(first, last);
    };
    for_each_tile(begin, end, [&](int64_t first) { start(first); }, run_tile);
    ProductIn::release();
  }

 private:
  // x and the weights have the pieces of their storage type, z has those of a float.
  static constexpr int kPieces = kPiecesOf<Storage>, kFloatPieces = kPiecesOf<float>;
  using ProductIn = UnitProduct<kPieces, kPieces>;
  using ProductOut = UnitProduct<kPieces, kFloatPieces>;

  // What the convolution of a listed channel needs.
  struct HiddenRow {
    float b_in, b_dw, w[3];
    float* past;
  };

  void list_rows() {
    for (int64_t i = 0; convolves_in_registers_ && i < hidden_.count(); ++i) {
      const int64_t channel = hidden_.channels()[i];
      const float* w = weights(call_.w_dw) + channel * 3;
      rows_[i] = {
          or_zeros(call_.b_in)[channel], or_zeros(call_.b_dw)[channel], {w[0], w[1], w[2]}, history_ + channel * past_};
    }
  }

  // Biases have as many values.
  int64_t zeros() const { return call_.hidden > call_.out_channels ? call_.hidden : call_.out_channels; }
  const float* or_zeros(const void* p) const { return p == nullptr ? zeros_ : weights(p); }

  // Fills the history of a tile that has no predecessor in this range: u at [first - left, first + right), in the way
  // that the tiles before it do.
  void start(int64_t first) {
    clear_history();
    is_packed_ = false;
    for_each_past_window(first, [&](const Window& window, int64_t begin, int64_t count) {
      if (find_open(window) == 0) return;
      const auto finish = [&](int64_t i, float* u) {
        finish_u(hidden_.channels()[i], u_open_[i] >> (begin - window.fresh), begin, count, u);
        remember(hidden_.channels()[i], u, begin, count, first);
      };
      if (call_.w_in == nullptr) {
        for (int64_t i = 0; i < hidden_.count(); ++i) finish(i, u_row(i));
        return;
      }
      pack_x(begin, count);
      set_rows_in();
      collect_u(finish);
    });
  }

  // Lists the hidden channels that a window computes, and the frames at which each is open.  The result is not zero
  // where some channel is open at some frame.
  uint64_t find_open(const Window& window) {
    const auto gate = hidden_gate();
    if (hidden_.find(gate, item_, window.begin, call_.frames, call_.right())) {
      is_stale_in_ = is_stale_out_ = true;
      list_rows();
    }
    const int64_t count = hidden_.count();
    const uint64_t frames = lowest_bits(window.frames()), fresh = lowest_bits(window.fresh_frames());
    if (!hidden_varies_) {
      for (int64_t i = 0; i < count; ++i) {
        u_open_[i] = fresh;
        z_open_[i] = frames;
      }
      return count > 0;
    }
    uint64_t any = 0;
    if (gate.words != nullptr && call_.right() == 0) {
      // A tile has one word of each channel.
      const uint64_t* words = gate.words + window.begin / GateWords::kFrames * gate.frame_stride;
      for (int64_t i = 0; i < count; ++i) any |= u_open_[i] = z_open_[i] = words[hidden_.channels()[i]];
      return any;
    }
    for (int64_t i = 0; i < count; ++i) {
      const int64_t channel = hidden_.channels()[i];
      z_open_[i] = gate.bits(channel, window.begin, window.end);
      u_open_[i] = call_.right() == 0 ? z_open_[i] : gate.bits(channel, window.fresh, window.fresh_end);
      any |= u_open_[i] | z_open_[i];
    }
    return any;
  }

  void pack_x(int64_t begin, int64_t count) {
    packing_.start(x_at(0, begin), call_.x_channel_stride, call_.channels, count, 1, x_split_);
    packing_.step();
  }

  void set_rows_in() {
    if (!is_stale_in_) return;
    is_stale_in_ = false;
    product_in_.set_rows(
        weights(call_.w_in), [&](int64_t i) { return hidden_.channels()[i] * call_.w_in_row_stride; }, hidden_.count(),
        nullptr, call_.channels);
  }

  void set_rows_out() {
    if (!is_stale_out_) return;
    is_stale_out_ = false;
    const bool has_columns = hidden_.count() < call_.hidden || call_.w_out_column_stride != 1;
    for (int64_t i = 0; i < hidden_.count(); ++i) columns_[i] = hidden_.channels()[i] * call_.w_out_column_stride;
    product_out_.set_rows(
        weights(call_.w_out), [&](int64_t i) { return out_.channels()[i] * call_.w_out_row_stride; }, out_.count(),
        has_columns ? columns_ : nullptr, hidden_.count());
  }

  void tile(int64_t begin, int64_t end) {
    const int64_t frames = end - begin;
    const Window window = window_at(begin);
    const bool is_packed = is_packed_;
    is_packed_ = false;
    if (find_open(window) == 0) {
      for (int64_t channel = 0; channel < call_.hidden; ++channel) forget(channel);
      for (int64_t row = 0; row < call_.out_channels; ++row) skip(row, begin, frames);
      return;
    }
    for (int64_t i = 0; i < hidden_.closed_count(); ++i) forget(hidden_.closed()[i]);

    z_split_.start(hidden_.count(), whole_vectors<float>(frames));
    if (call_.w_in != nullptr && window.fresh_frames() > 0) {
      if (!is_packed) pack_x(window.fresh, window.fresh_frames());
      multiply_in(window);
    } else {
      for (int64_t i = 0; i < hidden_.count(); i += 2) {
        const int rows = i + 1 < hidden_.count() ? 2 : 1;
        for (int r = 0; r < rows; ++r) __builtin_memset(u_row(i + r), 0, kTile * sizeof(float));
        convolve_rows(i, rows, window);
      }
    }
    project(begin, frames);
  }

  // The new frames of u of a listed channel.
  float* u_row(int64_t i) const { return u_rows_ + i * row_width_ + past_; }

  // W_in x to the rows of u; calls finish(i, row of u) for every listed channel whose row is complete.
  template <class Finish>
  void collect_u(Finish finish) {
    const auto does = [&](UnitPiece piece, int rows) {
      product_in_.complete(piece, rows);
      for (int r = 0; r < rows; ++r) {
        store(u_row(piece.row + r) + piece.v * kUnitFrames, load(piece.sums + r * kSumsStride));
        if (piece.v + 1 == x_split_.vectors) finish(piece.row + r, u_row(piece.row + r));
      }
    };
    product_in_.multiply(x_split_, PieceByPiece(does));
  }

  // The first half of a tile; z is split as soon as it is there.
  void multiply_in(const Window& window) {
    set_rows_in();
    if (!convolves_in_registers_) {
      collect_u([&](int64_t i, float*) {
        if (i % 2 == 1) {
          convolve_rows(i - 1, 2, window);
        } else if (i + 1 == hidden_.count()) {
          convolve_rows(i, 1, window);
        }
      });
      return;
    }
    for (int64_t i = 0; i < hidden_.count(); ++i) remembers_[hidden_.channels()[i]] = 1;
    if (call_.slope_in == nullptr) {
      product_in_.multiply(x_split_, Convolution<Slope::relu>(*this));
    } else {
      product_in_.multiply(x_split_, Convolution<Slope::at_most_one>(*this));
    }
  }

  // z of one or two listed channels.
  void convolve_rows(int64_t i, int rows, const Window& window) {
    for (int r = 0; r < rows; ++r) {
      const int64_t channel = hidden_.channels()[i + r];
      float* u = u_row(i + r);
      if (window.fresh_frames() > 0) finish_u(channel, u_open_[i + r], window.fresh, window.fresh_frames(), u);
      convolve(channel, z_open_[i + r], window, u - past_, z_rows_ + r * kTile);
    }
    for (int v = 0; v < z_split_.vectors; ++v) {
      const float* z = z_rows_ + v * kUnitFrames;
      z_split_.writer().put(i, v, load(z), rows == 2 ? load(z + kTile) : zero<float>());
    }
  }

  // From sums to z, for boolean gates, slopes of one kind, three taps, no look-ahead and a reach of at most one vector.
  // u stays in registers: a shifted load of what was just stored would have to wait until the unit is done.
  template <Slope kSlope>
  class Convolution {
   public:
    explicit Convolution(const UnitTiles& tiles)
        : product_(&tiles.product_in_),
          z_(tiles.z_split_.writer()),
          rows_(tiles.rows_),
          open_(tiles.z_open_),
          slope_in_(broadcast(*tiles.or_zeros(tiles.call_.slope_in))),
          slope_dw_(broadcast(*tiles.or_zeros(tiles.call_.slope_dw))),
          near_(delay(tiles.call_.dilation)),
          far_(delay(2 * tiles.call_.dilation)) {}

    DYNCP_INLINE void first(UnitPiece piece) {
      product_->complete(piece, 2);
      a_ = rectify(piece, 0, lanes_a_);
      b_ = rectify(piece, 1, lanes_b_);
    }
    DYNCP_INLINE void second(UnitPiece piece) {
      a_ = convolve(rows_[piece.row], a_);
      b_ = convolve(rows_[piece.row + 1], b_);
    }
    DYNCP_INLINE void third(UnitPiece) {
      a_ = rectified<kSlope>(a_, slope_dw_, lanes_a_);
      b_ = rectified<kSlope>(b_, slope_dw_, lanes_b_);
    }
    DYNCP_INLINE void fourth(UnitPiece piece) { z_.put(piece.row, piece.v, a_, b_); }

    DYNCP_INLINE void single(UnitPiece piece) {
      product_->complete(piece, 1);
      a_ = convolve(rows_[piece.row], rectify(piece, 0, lanes_a_));
      z_.put(piece.row, piece.v, rectified<kSlope>(a_, slope_dw_, lanes_a_), zero<float>());
    }

   private:
    DYNCP_INLINE Vec<float> rectify(UnitPiece piece, int r, OpenLanes& lanes) const {
      lanes = open_lanes(open_[piece.row + r], piece.v * kUnitFrames);
      const Vec<float> sum = load(piece.sums + r * kSumsStride) + broadcast(rows_[piece.row + r].b_in);
      return rectified<kSlope>(sum, slope_in_, lanes);
    }

    // The vector before this one is in the history.  A tile that is not whole is the last one.
    DYNCP_INLINE Vec<float> convolve(const HiddenRow& row, Vec<float> u) const {
      const Vec<float> before = load(row.past);
      store(row.past, u);
      return three_taps(row.w, row.b_dw, before, u, far_, near_);
    }

    const ProductIn* product_;
    typename UnitFrames<kFloatPieces>::Writer z_;
    const HiddenRow* rows_;
    const uint64_t* open_;
    Vec<float> slope_in_, slope_dw_;
    Words near_, far_;
    Vec<float> a_, b_;
    OpenLanes lanes_a_, lanes_b_;
  };

  // The second half.  The next tile's x is packed meanwhile.
  void project(int64_t begin, int64_t frames) {
    // A frame at which no hidden channel is open skips the branch.
    uint64_t branch = hidden_varies_ ? 0 : lowest_bits(frames);
    for (int64_t i = 0; hidden_varies_ && i < hidden_.count(); ++i) branch |= z_open_[i];
    const auto gate = out_gate();
    if (out_.find(gate, item_, begin, call_.frames, 0)) is_stale_out_ = true;
    for (int64_t i = 0; i < out_.closed_count(); ++i) skip(out_.closed()[i], begin, frames);
    set_rows_out();

    for (int64_t i = 0; i < out_.count(); ++i) out_open_[i] = branch;
    for (int64_t i = 0; out_varies_ && i < out_.count(); ++i) {
      out_open_[i] &= gate.bits(out_.channels()[i], begin, begin + frames);
    }

    const Window next = window_at(begin + kTile);
    const bool packs_next = call_.w_in != nullptr && has_next_ && next.fresh_frames() > 0 && out_.count() > 0;
    if (packs_next) {
      packing_.start(x_at(0, next.fresh), call_.x_channel_stride, call_.channels, next.fresh_frames(),
                     (out_.count() + 1) / 2 * z_split_.vectors, x_split_);
    }
    product_out_.multiply(z_split_, WriteAndPack(Output(*this, begin, frames), packing_, packs_next));
    is_packed_ = packs_next;
  }

  // From sums to y.
  class Output {
   public:
    Output(UnitTiles& tiles, int64_t begin, int64_t frames)
        : tiles_(&tiles),
          product_(&tiles.product_out_),
          rows_(tiles.out_.channels()),
          open_(tiles.out_open_),
          bias_(tiles.or_zeros(tiles.call_.b_out)),
          x_(tiles.call_.residual ? tiles.x_at(0, begin) : nullptr),
          y_(tiles.y_at(0, begin)),
          x_stride_(tiles.call_.x_channel_stride),
          y_stride_(tiles.y_.channel_stride),
          begin_(begin),
          frames_(frames),
          is_plain_(tiles.call_.out_gate.form != GateForm::values),
          // Tiles have room behind the last frame.
          whole_frames_(tiles.call_.y_tile_stride > 0 && tiles.call_.x_tile_stride > 0 ? kTile : frames) {}

    DYNCP_INLINE void complete(UnitPiece piece, int count) const {
      product_->complete(piece, count, [tiles = tiles_, frames = frames_](int64_t row, int v, float* sums) {
        tiles->repair(row, v, frames, sums);
      });
    }

    DYNCP_INLINE void write(UnitPiece piece, int r) const {
      const int64_t row = rows_[piece.row + r], t = piece.v * kUnitFrames;
      const uint64_t open = open_[piece.row + r] >> t;
      float* sums = piece.sums + r * kSumsStride;
      if (!is_plain_ || t + kUnitFrames > whole_frames_)
        return tiles_->write_carefully(row, begin_, t, frames_, sums, open);
      const __m512 bias = _mm512_set1_ps(bias_[row]);
      const Vec<float> sum =
          bits_as<Vec<float>>(_mm512_maskz_add_ps(static_cast<__mmask16>(open), bits_as<__m512>(load(sums)), bias));
      store(y_ + row * y_stride_ + t, x_ == nullptr ? sum : load(x_ + row * x_stride_ + t) + sum);
    }

   private:
    UnitTiles* tiles_;
    const ProductOut* product_;
    const int32_t* rows_;
    const uint64_t* open_;
    const float* bias_;
    const Storage* x_;
    Storage* y_;
    int64_t x_stride_, y_stride_, begin_, frames_;
    bool is_plain_;
    int64_t whole_frames_;
  };

  // One vector of a row, from frame t of the tile on, whatever its gate is and where it ends.
  __attribute__((noinline)) void write_carefully(int64_t row, int64_t begin, int64_t t, int64_t frames, float* sums,
                                                 uint64_t open) {
    const int64_t count = frames - t < kUnitFrames ? frames - t : kUnitFrames;
    write(row, begin + t, count, sums, nullptr, open & lowest_bits(count));
  }

  // The product multiplied the zeros of closed frames too, which is wrong only where a weight is not finite.  Such a
  // weight shows as a value that is not finite: sum those again, over the open channels of their frame.
  __attribute__((noinline)) void repair(int64_t i, int v, int64_t frames, float* sums) const {
    if (!hidden_varies_) return;
    const int64_t begin = v * kUnitFrames;
    const float* w = weights(call_.w_out) + out_.channels()[i] * call_.w_out_row_stride;
    const float* z = z_split_.whole();
    for (int64_t t = begin; t < frames && t < begin + kUnitFrames; ++t) {
      if (sums[t - begin] - sums[t - begin] == 0) continue;
      float sum = 0;
      for (int64_t k = 0; k < hidden_.count(); ++k) {
        if ((z_open_[k] >> t & 1) == 0) continue;
        sum = w[hidden_.channels()[k] * call_.w_out_column_stride] * z[k * kTile + t] + sum;
      }
      sums[t - begin] = sum;
    }
  }

  OpenList hidden_, out_;
  UnitFrames<kPieces> x_split_;
  UnitPacking<Storage, kPieces> packing_;
  UnitFrames<kFloatPieces> z_split_;
  ProductIn product_in_;
  ProductOut product_out_;
  bool is_stale_in_ = true, is_stale_out_ = true;  // whether the rows of the products are other ones
  bool has_next_ = false;                          // whether this range goes on with the next tile of the item
  bool is_packed_ = false;                         // whether x of this tile is packed already
  float* u_rows_;                                  // [hidden][past_ + kTile]
  float* z_rows_;                                  // [2][kTile]
  int64_t* columns_;                               // of the listed channels, in w_out
  uint64_t* u_open_;                               // per listed channel: at which new frames of u it is open
  uint64_t* z_open_;                               // and at which frames of the tile
  HiddenRow* rows_;                                // per listed channel
  uint64_t* out_open_;                             // per listed output
  float* zeros_;                                   // in place of biases and slopes that are missing
  int64_t bytes_;
};

#endif

}  // namespace dyncp::DYNCP_ISA
