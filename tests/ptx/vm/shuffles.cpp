// SPDX-License-Identifier: MIT
//
// What lanes of a warp do together: shuffles, votes, barriers, and matrices in shared memory.
#include <cstring>

#include "launch.h"

namespace ptx {

void count_matrix(Instruction& in, const u64* rows);

namespace {

enum Mode { kButterfly, kDown, kUp, kIndex };

template <Mode kMode>
void shuffle(Launch& launch, Warp& warp, Instruction& in, u32 lanes) {
  const u32 *value = source<u32>(warp, in, 0), *by = source<u32>(warp, in, 1),
            *bounds = source<u32>(warp, in, 2);
  u32 result[kLanes], in_range = 0;
  for_lanes(lanes, [&](int lane) {
    const int distance = by[lane] & 31, clamp = bounds[lane] & 31, segment = bounds[lane] >> 8 & 31;
    const int last = (lane & segment) | (clamp & ~segment);
    int from = lane ^ distance;
    if (kMode == kDown) from = lane + distance;
    if (kMode == kUp) from = lane - distance;
    if (kMode == kIndex) from = (lane & segment) | (distance & ~segment);
    const bool valid = kMode == kUp ? from >= last : from <= last;
    if (!valid) from = lane;
    if (!(lanes >> from & 1)) {
      launch.report(warp, lane, in, "shuffle from a lane that does not take part");
      from = lane;
    }
    result[lane] = value[from];
    in_range |= static_cast<u32>(valid) << lane;
  });
  if (in.target[0] >= 0) {
    u32* d = target<u32>(warp, in, 0);
    for_lanes(lanes, [&](int lane) { d[lane] = result[lane]; });
  }
  set_predicate(warp, in, 1, in_range, lanes);
}

void ballot(Launch&, Warp& warp, Instruction& in, u32 lanes) {
  const u32 votes = predicate(warp, in, 0) & lanes;
  u32* d = target<u32>(warp, in, 0);
  for_lanes(lanes, [&](int lane) { d[lane] = votes; });
}

template <bool kAll>
void vote(Launch&, Warp& warp, Instruction& in, u32 lanes) {
  const u32 votes = predicate(warp, in, 0) & lanes;
  const bool result = kAll ? votes == lanes : votes != 0;
  set_predicate(warp, in, 0, result ? kAllLanes : 0, lanes);
}

// 8x8 matrices of 16-bit numbers. Row r of matrix m lies where lane 8 m + r says; lane l has two
// neighbors of row l / 4, or with .trans of column l / 4.
template <bool kLoad, bool kNarrow>
void matrices(Launch& launch, Warp& warp, Instruction& in, u32 lanes) {
  if (lanes != kAllLanes) {
    launch.report(warp, __builtin_ctz(lanes), in, "matrices for a part of a warp");
    return;
  }
  const bool transposed = in.second != 0;
  u64 address[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    address[lane] =
        in.immediate + (kNarrow ? source<u32>(warp, in, 0)[lane] : source<u64>(warp, in, 0)[lane]);
  }
  for (int m = 0; m < in.access.count; ++m) {
    u16 matrix[8][8];
    const auto element = [&](int lane, int half) -> u16& {
      const int row = lane / 4, col = 2 * (lane % 4) + half;
      return transposed ? matrix[col][row] : matrix[row][col];
    };
    for (int lane = 0; !kLoad && lane < kLanes; ++lane) {
      const u32 two = source<u32>(warp, in, 1 + m)[lane];
      element(lane, 0) = static_cast<u16>(two);
      element(lane, 1) = static_cast<u16>(two >> 16);
    }
    for (int r = 0; r < 8; ++r) {
      const int lane = 8 * m + r;
      u8* host = launch.shared_at(warp, lane, in, address[lane], 16, !kLoad, matrix[r]);
      if (host && kLoad) std::memcpy(matrix[r], host, 16);
      if (host && !kLoad) std::memcpy(host, matrix[r], 16);
    }
    for (int lane = 0; kLoad && lane < kLanes; ++lane) {
      target<u32>(warp, in, m)[lane] = element(lane, 0) | static_cast<u32>(element(lane, 1)) << 16;
    }
    count_matrix(in, address + 8 * m);
  }
}

}  // namespace

void add_shuffles(Operations& o) {
  const Control meet = Control::kWarpBarrier;
  o["shfl.bfly"] = {shuffle<kButterfly>, meet};
  o["shfl.down"] = {shuffle<kDown>, meet};
  o["shfl.up"] = {shuffle<kUp>, meet};
  o["shfl.idx"] = {shuffle<kIndex>, meet};
  o["vote.ballot"] = {ballot, meet};
  o["vote.all"] = {vote<true>, meet};
  o["vote.any"] = {vote<false>, meet};
  o["ldmatrix"] = {matrices<true, false>, meet};
  o["ldmatrix.narrow"] = {matrices<true, true>, meet};
  o["stmatrix"] = {matrices<false, false>, meet};
  o["stmatrix.narrow"] = {matrices<false, true>, meet};
  o["bar.warp.sync"] = {
      [](Launch& launch, Warp& warp, Instruction&, u32 lanes) { launch.sync_warp(warp, lanes); },
      meet};
}

}  // namespace ptx
