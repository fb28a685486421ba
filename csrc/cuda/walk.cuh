// SPDX-License-Identifier: MIT
//
// How a block goes over its tiles, several times.
#pragma once

#include "tile.cuh"

namespace fastsn {

// Descriptions of tiles are made by one thread each, kTileBatch at a time, for all threads to read.
constexpr int kTileBatch = 8;

// What the threads of a block share of a walk.
struct WalkShared {
  Tile tiles[2 * kTileBatch];
  int batch[2];  // the batches described in each half of `tiles`
  int first;     // of the block's tiles
  int count;
};

// A block's tiles are neighbors. The first `kept` of them stay in shared memory from the first walk
// on; the others stream through a ring of slots, loaded ahead. Walks alternate in direction, so
// that each begins with what the last one left in the L2 cache.
//
//   walk.begin();
//   while (walk.next()) {
//     const Tile& tile = walk.tile();
//     const T* slot = walk.wait();  // a block barrier
//     ...
//     block_barrier();              // the slot may be filled anew
//   }
template <typename T, typename Table>
class TileWalk {
 public:
  FASTSN_DEVICE TileWalk(const Table& table, WalkShared& shared, T* slots)
      : table_(table), shared_(shared), slots_(slots) {
    if (thread_index() == 0) {
      const int64_t total = table.tiles;
      shared.first = static_cast<int>(total * block_index() / block_count());
      shared.count = static_cast<int>(total * (block_index() + 1) / block_count()) - shared.first;
      shared.batch[0] = shared.batch[1] = -1;
    }
    block_barrier();
  }

  // Returns the number of walks before this one.
  FASTSN_DEVICE int begin() {
    position_ = -kRing;
    return walk_ += 1;
  }

  FASTSN_DEVICE bool next() {
#pragma unroll 1
    do {
      ++position_;
      start(position_ + kRing - 1);
    } while (position_ < 0);
    return position_ < shared_.count;
  }

  FASTSN_DEVICE const Tile& tile() const { return described(order(position_)); }

  // Whether the tile is the first one of its problem in this walk of this block.
  FASTSN_DEVICE bool at_new_problem() const {
    return position_ == 0 || tile().index == (backwards() ? tile().tiles - 1 : 0);
  }

  FASTSN_DEVICE T* wait() const {
    copy_async_wait<kRing - 1>();
    block_barrier();
    return slot(position_);
  }

 private:
  FASTSN_DEVICE bool backwards() const { return walk_ % 2 == 1; }

  FASTSN_DEVICE int order(int position) const {
    return backwards() ? shared_.count - 1 - position : position;
  }

  FASTSN_DEVICE T* slot(int position) const {
    const int own = order(position);
    const int streamed = backwards() ? position : position - table_.kept;
    const int place = own < table_.kept ? own : table_.kept + streamed % kRing;
    return slots_ + place * (kSlotBytes / static_cast<int>(sizeof(T)));
  }

  // Describes the tile of a position to come, and begins to load it unless it was kept.
  FASTSN_DEVICE void start(int position) {
    if (position < shared_.count) {
      const int own = order(position);
      describe(own / kTileBatch);
      if (walk_ == 0 || own >= table_.kept) {
        const Tile& next = described(own);
        load_tile(next, static_cast<const T*>(table_.problem[next.problem].data), slot(position));
      }
    }
    copy_async_commit();
  }

  FASTSN_DEVICE Tile& described(int own) const { return shared_.tiles[own % (2 * kTileBatch)]; }

  // Two batches are at hand: the tile at work and those loaded ahead are in neighboring ones.
  FASTSN_DEVICE void describe(int batch) {
    int& at_hand = shared_.batch[batch % 2];
    if (at_hand == batch) return;
    block_barrier();  // all threads have looked
    if (thread_index() == 0) at_hand = batch;
    const int own = batch * kTileBatch + thread_index();
    if (thread_index() < kTileBatch && own < shared_.count) {
      make_tile(table_, shared_.first + own, described(own));
    }
    block_barrier();
  }

  const Table& table_;
  WalkShared& shared_;
  T* slots_;
  int walk_ = -1;
  int position_ = 0;
};

}  // namespace fastsn
