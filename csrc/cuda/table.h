// SPDX-License-Identifier: MIT
//
// What a launch is given: plain structs, passed by value as the kernel's parameter, so that a call
// copies nothing to the device and can be captured in a CUDA graph.
//
// A weight is walked as a dense array of three dimensions, its box. Every unfolding of it is an
// axis of the box: the rows run along that axis, the columns along the other two, in memory order.
// Boxes are cut into tiles, and a block works on one tile. A tile is `size[0]` rows of neighbors in
// memory. Its place and size depend on the weight's shape and dtype only, and so do all sums:
// neither the card nor the other weights of a launch change a bit of the result.
#pragma once

#include <cstdint>

#include "../dtype.h"

namespace fastsn {

constexpr int kWarp = 32;
#ifdef FASTSN_HOST_THREADS
constexpr int kThreads = FASTSN_HOST_THREADS;  // fewer, where threads are simulated
#else
constexpr int kThreads = 256;
#endif
constexpr int kWarps = kThreads / kWarp;

// Entries of shared memory (of the dtype sums are made in): of what belongs to rows of a tile, and
// of the working memory, which holds part sums of rows and, for t, rows of the tile.
constexpr int kRowEntries = 3072;
constexpr int buffer_entries(bool wide) { return wide ? 4608 : 9216; }

// Weights per launch. A launch copies the whole of its parameter, used or not, and each kernel is
// compiled for two sizes of it: few weights fill the 4 kB that every CUDA takes, many the 32,764
// bytes it takes from 12.1 on. A list longer than that takes several launches, with the same
// results.
constexpr int kFewProblems = 21;
constexpr int kManyProblems = 175;

// Index of arrays that hold something for the rows, u and s = M v, and for the columns, v and t.
enum Side : int32_t { kRows = 0, kCols = 1 };

// Division by one number: exact while x * divisor < 2^32.
struct Divider {
  uint32_t divisor;
  uint32_t magic;
};

// A weight, as both directions have it.
struct Problem {
  const void* data;  // the weight; in backward, the gradient of weight_sn
  double scale;
  int32_t size[3];      // of the box, slowest first
  int32_t grid[3];      // tiles along each axis
  int32_t first_tile;   // among all tiles of the launch
  int32_t piece;        // elements in each of as many flat pieces as there are tiles
  int32_t place[2][2];  // per view and side: of u or v, among the entries of the launch
  int32_t split[2];     // per view, as in View: brings channels_last columns into torch's order
  Divider packs;        // threads beside each other in a row; each has `width` neighbors
  Divider inner;        // elements of a tile along the fastest axis
  int16_t tile[3];      // size of a tile, except the last ones along an axis
  int16_t row_step;     // rows that the block works on at once
  int16_t first_view;   // among all views of the launch
  int8_t axis[2];       // per view: of the box, where the rows run
  int8_t views;
  int8_t width;  // 16 bytes' worth, or 1 where rows begin anywhere
};

// What is kept of every strip of s and t: so norms need not be summed over vectors again.
enum Stat : int32_t { kSquares = 0, kGivenSquares = 1, kDotGiven = 2, kStats = 3 };

// The sums of a vector, and its part sums, begin at multiples of so many entries.
constexpr int kPartsUnit = 4;

struct ForwardProblem : Problem {
  void* weight_sn;
  // u and v per view, in torch's order; written to by ForwardCall::store_vectors alone
  void* given[2][2];
  int32_t strip[2][2];  // per view and side: the first, among the strips of the launch
  int32_t part[2][2];   // of the part sums, [tiles][length], in kPartsUnit
  int8_t given_dtype[2][2];
};

// What all weights of a launch have in common. All tiles that add to the same entries of s or t are
// a strip. In the workspace, where A is the dtype sums are made in and places are in bytes:
//   stats     double [strips][kStats]
//   counters  uint32 [strips]: tiles that have written their part; zero before and after a launch
//   sums      A: s and t, in memory order, in the order of their u and v in `vectors`; each begins
//             at a multiple of kPartsUnit entries, which takes gaps (strips.cuh)
//   parts     A, per view [tiles][length] for s and for t: how many tiles make part sums of each
struct ForwardCall {
  int32_t problems;
  int32_t first_problem;  // of the call: the place in sigmas and scales
  int32_t first_view;     // of the call: the place in view_stats
  int32_t tiles;
  int32_t strips;
  int32_t iterations;
  int32_t iteration;  // that the launch belongs to
  int32_t out_dtype;
  int32_t scale_dtype;
  int32_t store_vectors;  // the new vectors go into the given ones, too
  double eps;
  const void* scales;  // null: Problem::scale holds
  void* workspace;
  int64_t counters;
  int64_t sums;
  int64_t parts;
  int64_t first_entry;  // of the call: the place in vectors
  void* sigmas;
  void* vectors;
  void* view_stats;
};

template <int kMost>
struct ForwardTableOf : ForwardCall {
  ForwardTableOf() : ForwardCall() {}  // the problems are left alone: most calls have few
  ForwardProblem problem[kMost];
};

struct BackwardProblem : Problem {
  const void* weight_sn;
  void* grad_weight;
};

struct BackwardCall {
  int32_t problems;
  int32_t first_problem;
  int32_t first_view;
  int32_t tiles;
  int32_t grad_dtype;
  int32_t scale_dtype;
  int64_t first_entry;
  const void* scales;
  void* products;  // one double per tile of the launch
  const void* sigmas;
  const void* grad_sigmas;  // null: zeros
  const void* vectors;
  const void* view_stats;
  void* grad_scales;
};

template <int kMost>
struct BackwardTableOf : BackwardCall {
  BackwardTableOf() : BackwardCall() {}
  BackwardProblem problem[kMost];
};

// What the host fills. A kernel for few weights is given the beginning of it.
using ForwardTable = ForwardTableOf<kManyProblems>;
using BackwardTable = BackwardTableOf<kManyProblems>;

static_assert(sizeof(ForwardTableOf<kFewProblems>) <= 4096 && sizeof(ForwardTable) <= 32764);
static_assert(sizeof(BackwardTableOf<kFewProblems>) <= 4096 && sizeof(BackwardTable) <= 32764);

}  // namespace fastsn
