// SPDX-License-Identifier: MIT
//
// What one launch is given: plain structs, passed by value as the kernel's parameter, so that a
// call copies nothing to the device and can be captured in a CUDA graph.
//
// A weight is walked as a dense array of three dimensions, its Box. Every unfolding of it is then
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

// Weights per launch: parameters are copied with every launch, used or not. A longer list takes
// several launches, with the same results.
constexpr int kMaxProblems = 32;

struct Box {
  const void* data;    // the weight; in backward, the gradient of weight_sn
  int32_t size[3];     // slowest first
  int32_t tile[3];     // size of a tile, except the last ones along an axis
  int32_t grid[3];     // tiles along each axis
  int32_t first_tile;  // among all tiles of the launch
};

// Index of arrays that hold something for the rows, u and s = M v, and for the columns, v and t.
enum Side : int32_t { kRows = 0, kCols = 1 };

struct ViewPlan {
  int32_t axis;       // of the box: where the rows run
  int32_t split;      // as in View: what brings channels_last columns into torch's order
  int32_t length[2];  // rows, cols
  int64_t place[2];   // of u and v in `vectors`
};

struct GivenVector {
  void* data;  // in torch's order; written to by ForwardTable::store_vectors alone
  int32_t dtype;
};

// What is kept of every chunk of s and t, so that norms need not be summed over vectors again.
enum ChunkStat : int32_t { kSquares = 0, kGivenSquares = 1, kDotGiven = 2, kChunkStats = 3 };

struct ForwardView : ViewPlan {
  GivenVector given[2];  // u, v
  int32_t tiles[2];      // how many tiles make part sums of each entry of s and t
  // In the workspace, in bytes, for s and t. A is the dtype sums are made in.
  int64_t parts[2];  // A [tiles][length]
  int64_t sums[2];   // A [length]
  int64_t stats[2];  // double [chunks][kChunkStats]
};

struct ForwardProblem {
  Box box;
  void* weight_sn;
  double scale;
  int32_t views;
  int32_t first_view;      // in view_stats
  int32_t first_chunk[2];  // among all chunks of the launch, of rows and of columns
  ForwardView view[2];
};

struct ForwardTable {
  int32_t problems;
  int32_t first_problem;  // of the call: the place in sigmas and scales
  int32_t tiles;
  int32_t kept;  // how many of its tiles a block keeps in shared memory
  int32_t chunks[2];
  int32_t iterations;
  int32_t out_dtype;
  int32_t scale_dtype;
  int32_t store_vectors;  // the new vectors go into the given ones, too
  double eps;
  const void* scales;  // null: ForwardProblem::scale holds
  void* workspace;
  void* sigmas;
  void* vectors;
  void* view_stats;
  ForwardProblem problem[kMaxProblems];
};

struct BackwardProblem {
  Box box;
  const void* weight_sn;
  void* grad_weight;
  double scale;
  int32_t views;
  int32_t first_view;
  ViewPlan view[2];
};

struct BackwardTable {
  int32_t problems;
  int32_t first_problem;
  int32_t tiles;
  int32_t kept;
  int32_t grad_dtype;
  int32_t scale_dtype;
  const void* scales;
  void* products;  // one double per tile of the launch
  const void* sigmas;
  const void* grad_sigmas;  // null: zeros
  const void* vectors;
  const void* view_stats;
  void* grad_scales;
  BackwardProblem problem[kMaxProblems];
};

// The limit on parameters from CUDA 12.1 on.
static_assert(sizeof(ForwardTable) <= 32764 && sizeof(BackwardTable) <= 32764);

}  // namespace fastsn
