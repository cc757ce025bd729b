// Which channels the tiles of the gated block compute on the matrix unit.
//
// Splitting a row of weights for the unit costs as much as a quarter of its products with one tile, so neighbouring
// tiles form groups that share a list where that pays.  Lists depend on the gates and the place of the tile only.
#pragma once

#include "core/kernels/gates.h"
#include "core/kernels/storage.h"
#include "core/simd.h"

#if defined(__AVX512F__)

namespace dyncp::DYNCP_ISA {

// The list of one site.
class OpenList {
 public:
  // Tiles in which groups are looked for.
  static constexpr int64_t kSpan = 8;

  OpenList(Arena& arena, int64_t channels, bool varies) : channels_(channels), varies_(varies) {
    words_ = (channels + 63) / 64;
    list_ = arena.take<int32_t>(channels);
    closed_ = arena.take<int32_t>(channels);
    sets_ = arena.take<uint64_t>(kSpan * words_);
    listed_ = arena.take<uint64_t>(words_);
  }

  // Lists what is open in the group of the tile at frame `begin`; the frames of a tile reach `ahead` frames beyond it.
  // Says whether that is another list than before.
  template <class ItemGateOf>
  bool find(const ItemGateOf& gate, int64_t item, int64_t begin, int64_t frames, int64_t ahead) {
    if (item == item_ && (!varies_ || (begin_ <= begin && begin < end_))) return false;
    if (!varies_) {
      mark_open(gate, 0, 1, sets_);
      item_ = item;
      return list(sets_);
    }
    const int64_t first = begin / (kSpan * kTile) * (kSpan * kTile);
    if (item != item_ || first != span_) {
      item_ = item;
      span_ = first;
      for (int64_t tile = 0; tile < kSpan && first + tile * kTile < frames; ++tile) {
        const int64_t from = first + tile * kTile, to = from + kTile + ahead;
        mark_open(gate, from, to < frames ? to : frames, sets_ + tile * words_);
      }
    }
    // A list of n channels costs n times its tiles, and n / 4 more.
    const int64_t tiles = (frames - first + kTile - 1) / kTile < kSpan ? (frames - first + kTile - 1) / kTile : kSpan;
    int64_t from = 0, to = 0;
    while (to * kTile + first <= begin) {
      from = to;
      uint64_t* group = sets_ + from * words_;
      __builtin_memcpy(listed_, group, words_ * sizeof(uint64_t));
      int64_t count = count_of(listed_, listed_);
      for (++to; to < tiles; ++to) {
        const uint64_t* next = sets_ + to * words_;
        const int64_t alone = count_of(next, next), together = count_of(listed_, next);
        if (together * (4 * (to - from + 1) + 1) > count * (4 * (to - from) + 1) + alone * 5) break;
        for (int64_t i = 0; i < words_; ++i) listed_[i] |= next[i];
        count = together;
      }
    }
    begin_ = first + from * kTile;
    end_ = first + to * kTile;
    return list(listed_);
  }

  int64_t count() const { return count_; }
  int64_t closed_count() const { return channels_ - count_; }
  const int32_t* channels() const { return list_; }
  const int32_t* closed() const { return closed_; }

 private:
  template <class ItemGateOf>
  void mark_open(const ItemGateOf& gate, int64_t begin, int64_t end, uint64_t* set) const {
    __builtin_memset(set, 0, words_ * sizeof(uint64_t));
    if (gate.words != nullptr && !gate.is_constant() && end - begin <= GateWords::kFrames) {
      const uint64_t* words = gate.words + begin / GateWords::kFrames * gate.frame_stride;
      for (int64_t channel = 0; channel < channels_; channel += 8) {
        const __mmask8 exist = channels_ - channel >= 8 ? 0xff : (1u << (channels_ - channel)) - 1;
        const __m512i eight = _mm512_maskz_loadu_epi64(exist, words + channel);
        set[channel / 64] |= static_cast<uint64_t>(_mm512_test_epi64_mask(eight, eight)) << channel % 64;
      }
      return;
    }
    for (int64_t channel = 0; channel < channels_; ++channel) {
      uint64_t open = 0;
      for (int64_t t = begin; t < end; t += 64) open |= gate.bits(channel, t, t + 64 < end ? t + 64 : end);
      set[channel / 64] |= static_cast<uint64_t>(open != 0) << channel % 64;
    }
  }

  int64_t count_of(const uint64_t* a, const uint64_t* b) const {
    int64_t count = 0;
    for (int64_t i = 0; i < words_; ++i) count += __builtin_popcountll(a[i] | b[i]);
    return count;
  }

  bool list(const uint64_t* set) {
    bool is_new = count_ < 0;
    int64_t open = 0, closed = 0;
    for (int64_t channel = 0; channel < channels_; ++channel) {
      if ((set[channel / 64] >> channel % 64 & 1) == 0) {
        closed_[closed++] = static_cast<int32_t>(channel);
        continue;
      }
      is_new |= open >= count_ || list_[open] != channel;
      list_[open++] = static_cast<int32_t>(channel);
    }
    is_new |= open != count_;
    count_ = open;
    return is_new;
  }

  int64_t channels_, words_;
  bool varies_;                  // in time
  int64_t count_ = -1;           // before the first list
  int64_t item_ = -1;            // that is listed
  int64_t span_ = -1;            // whose sets are known
  int64_t begin_ = 0, end_ = 0;  // frames of the group
  int32_t* list_;
  int32_t* closed_;
  uint64_t* sets_;    // per tile of the span: a bit for each channel that is open
  uint64_t* listed_;  // their union
};

}  // namespace dyncp::DYNCP_ISA

#endif
