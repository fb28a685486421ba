// SPDX-License-Identifier: MIT
//
// How kernels divide their shared memory.
#pragma once

#include <cstddef>

#include "launch.h"
#include "table.h"

namespace fastsn {

// The block's tile: rows of `cols` neighbors in memory, `row_stride` apart.
struct Tile {
  int32_t index;     // among the tiles of its problem
  int32_t place[3];  // in the grid
  int32_t begin[3];  // in the box
  int32_t size[3];
  int32_t cols;
  int32_t row_stride;
  int64_t origin;
};

// The entries of s or t, or of u or v, that belong to a tile.
struct Slice {
  int32_t base;
  int32_t count;
  int32_t width;   // neighbors
  int32_t stride;  // from one row of neighbors to the next
  int32_t strip;   // of the tiles that have the same slice, among the strips of the vector
  int32_t slot;    // of the tile, among those
  int32_t slots;
  int32_t length;  // of the vector
  int64_t sums;    // forward: where s or t is in the workspace, in bytes
  int64_t part;    // where the tile writes its part: there at once if it is the only one
};

// How an unfolding lies in the rows and columns of tiles.
enum Form : int32_t {
  kPlain,  // its rows are rows
  kCross,  // its rows are columns, and a row is one column of it
  kFold,   // its rows are groups of columns, and a row is as many columns of it as a group has
};

// Which view a product is made for, by what it is summed over (products.cuh); -1 for none.
struct Roles {
  int32_t over_cols;
  int32_t over_rows;
  int32_t over_groups;
  int32_t fold_sums;  // sums over rows are to be added up in groups
};

// What a few threads find out for all.
struct Place {
  int32_t problem;
  int32_t views;
  int32_t form[2];  // per view
  Roles roles;
  Tile tile;
  Slice slice[2][2];  // per view and side
};

// At its beginning. Behind it, of the dtype A that sums are made in and all aligned to 16 bytes:
//   forward, products   A rows[kRowEntries], cols[column_entries], buffer[buffer_entries]
//   backward, store     A rows[2][kRowEntries], cols[2][column_entries]
struct alignas(16) SharedHead {
  double warps[kStats * kWarps];
  double norms[2][2][kStats];  // per view and side: of s or t, of the given vector; their product
  double new_lengths[2];       // per view: ||u|| ||v||
  double given_lengths[2];
  double divisor[2][2];  // per view: max(||s||, eps), max(||t||, eps)
  double factor;         // weight_sn = factor * weight; grad_weight = factor * G - pull * S
  double pull;
  int32_t last[2];  // per view: this block is the last of a strip
  int32_t keep_vectors;
  Place place;
};
static_assert(sizeof(SharedHead) % 16 == 0 && kRowEntries % 4 == 0, "16 bytes at once behind it");
static_assert(sizeof(Roles) % 16 == 0 && offsetof(Place, tile) == 32,
              "no gaps, which wide loads read");
static_assert(kThreads % kWarp == 0 && buffer_entries(true) % 4 == 0);

// What threads beside each other hold of the columns, a vector of 16 bytes' worth each.
constexpr int column_entries(int32_t dtype) {
  return kThreads * (dtype == kFloat64 ? 2 : dtype == kFloat32 ? 4 : 8);
}

constexpr int shared_bytes(int32_t kernel, int32_t dtype) {
  const int sum = dtype == kFloat64 ? 8 : 4;
  const int head = static_cast<int>(sizeof(SharedHead));
  const int cols = column_entries(dtype);
  if (kernel == kBackwardStore) return head + sum * 2 * (kRowEntries + cols);
  if (kernel == kForwardFinish || kernel == kBackwardDot) return head;
  return head + sum * (kRowEntries + cols + buffer_entries(dtype == kFloat64));
}

}  // namespace fastsn
