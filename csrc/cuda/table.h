// SPDX-License-Identifier: MIT
//
// What one launch is given: plain structs, passed by value as the kernel's parameter, so that a
// call copies nothing to the device and can be captured in a CUDA graph.
//
// A weight is walked as a dense array of three dimensions, its box. Every unfolding of it is then
// an axis of the box: the rows run along that axis, the columns along the other two, in memory
// order. Boxes are cut into tiles; a tile's place and size depend on the weight's shape and dtype
// only, and so do all sums. Neither the number of blocks nor the other weights of a launch change
// a bit of the result.
#pragma once

#include <cstdint>

namespace fastsn {

// Values of torch's ScalarType.
enum DType : int32_t { kFloat16 = 5, kFloat32 = 6, kFloat64 = 7, kBFloat16 = 15 };

constexpr int kWarp = 32;
#ifdef FASTSN_HOST_THREADS
constexpr int kThreads = FASTSN_HOST_THREADS;  // fewer, where threads are simulated
#else
constexpr int kThreads = 512;
#endif
constexpr int kWarps = kThreads / kWarp;
static_assert(kThreads % (2 * kWarp) == 0, "16-byte alignment behind an array per warp");

// A tile fills at most one slot of shared memory, and takes at most kTileVector entries of a
// vector.
constexpr int kSlotBytes = 16384;
constexpr int kTileVector = 512;
// Slots through which tiles stream that do not stay in shared memory.
constexpr int kRing = 3;

// Entries of the shared array in which threads that share a sum leave their parts.
constexpr int kPartial = 2 * kThreads;

// Sums over tiles are made for kChunk entries of a vector at a time, by kSplit threads each.
constexpr int kSplit = 4;
constexpr int kChunk = kThreads / kSplit;

// Weights per launch. A launch copies the whole of its parameter, used or not, and each kernel is
// compiled for two sizes of it: few weights fill the 4 kB that every CUDA takes, many the 32,764
// bytes it takes from 12.1 on. A list longer than that takes several launches, with the same
// results.
constexpr int kFewProblems = 31;
constexpr int kManyProblems = 255;

// Index of arrays that hold something for the rows, u and s = M v, and for the columns, v and t.
enum Side : int32_t { kRows = 0, kCols = 1 };

// A weight, as both directions have it. What follows from these by a few multiplications is found
// where it is needed, in tile.cuh: the table is short of room.
struct Problem {
  const void* data;  // the weight; in backward, the gradient of weight_sn
  double scale;
  int32_t size[3];     // of the box, slowest first
  int32_t grid[3];     // tiles along each axis
  int32_t first_tile;  // among all tiles of the launch
  int32_t split[2];    // per view, as in View: what brings channels_last columns into torch's order
  int32_t place;       // of its first vector, among the entries of the launch
  int16_t tile[3];     // size of a tile, except the last ones along an axis
  int16_t first_view;  // among all views of the launch
  int8_t axis[2];      // per view: of the box, where the rows run
  int8_t views;
  bool v_first;  // its v comes before its u
};

// What is kept of every chunk of s and t, so that norms need not be summed over vectors again.
enum ChunkStat : int32_t { kSquares = 0, kGivenSquares = 1, kDotGiven = 2, kChunkStats = 3 };

// The part sums of a vector begin at multiples of so many.
constexpr int kPartsUnit = 4;

struct ForwardProblem : Problem {
  void* weight_sn;
  // u and v per view, in torch's order; written to by ForwardCall::store_vectors alone
  void* given[2][2];
  int32_t first_chunk[2];  // among all chunks of the launch, of rows and of columns
  int32_t first_part;      // among the part sums of the launch, in units of kPartsUnit
  int8_t given_dtype[2][2];
};

// What all weights of a launch have in common. In the workspace, where A is the dtype sums are made
// in and places are in bytes:
//   stats  double [chunks of rows, then of columns][kChunkStats]
//   sums   A [entries]: s and t, in memory order, each at the place of its u or v in `vectors`
//   parts  A, per view [tiles][length] for s and then for t: how many tiles make part sums of each
struct ForwardCall {
  int32_t problems;
  int32_t first_problem;  // of the call: the place in sigmas and scales
  int32_t first_view;     // of the call: the place in view_stats
  int32_t tiles;
  int32_t kept;  // how many of its tiles a block keeps in shared memory
  int32_t chunks[2];
  int32_t iterations;
  int32_t out_dtype;
  int32_t scale_dtype;
  int32_t store_vectors;  // the new vectors go into the given ones, too
  double eps;
  const void* scales;  // null: Problem::scale holds
  void* workspace;
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
  int32_t kept;
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
