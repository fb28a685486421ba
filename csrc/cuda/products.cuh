// SPDX-License-Identifier: MIT
//
// Products of a tile with slices of vectors, for all unfoldings from one look at it. A thread has
// 16 bytes' worth of neighboring columns and every so many rows, so loads are as wide as they can
// be, and neither the tile nor what belongs to columns passes through shared memory. Of the sums
//
//   over columns   (s of a plain unfolding, t of a crossed one) each thread leaves its part of
//                  every row in shared memory, to be added up afterwards;
//   over rows      (t of a plain one, s of a crossed one or a folded one) stay in registers;
//   over groups    (t of a folded one) are made from rows of the tile in shared memory (fold.cuh).
#pragma once

#include "fold.cuh"
#include "strips.cuh"

namespace fastsn {

// What a row of the tile is multiplied with in sums over rows.
enum RowFactor {
  kNone,
  kOne,     // one number
  kVector,  // neighbors in a group of columns, aligned as the columns are
  kAny,     // numbers from anywhere in a group
};

// One thread's work, behind find_place.
FASTSN_DEVICE void find_roles(int side, int views, Place& place) {
  Roles roles = {-1, -1, -1, 0};
#pragma unroll 1
  for (int j = 0; j < views; ++j) {
    const int form = place.form[j];
    if (form == kFold && side == kCols) {
      roles.over_groups = j;
    } else if ((form == kPlain) == (side == kRows)) {
      roles.over_cols = j;
    } else {
      roles.over_rows = j;
      roles.fold_sums = form == kFold;
    }
  }
  place.roles = roles;
}

template <typename T, int kSide>
struct Products {
  using A = accumulate_t<T>;

  const ForwardCall& call;
  const ForwardProblem& weight;
  const SharedHead& shared;
  const Tile tile;
  const Roles roles;
  A* rows;    // in shared memory: what belongs to rows
  A* cols;    // what belongs to columns, then part sums over rows
  A* buffer;  // part sums over columns, or rows of the tile

  FASTSN_DEVICE Products(const ForwardCall& call, const ForwardProblem& weight, SharedHead& shared)
      : call(call),
        weight(weight),
        shared(shared),
        tile(shared.place.tile),
        roles(shared.place.roles) {
    rows = reinterpret_cast<A*>(&shared + 1);
    cols = rows + kRowEntries;
    buffer = cols + kColumnEntries<T>;
  }

  FASTSN_DEVICE const Slice& slice_of(int j, int side) const { return shared.place.slice[j][side]; }

  // Copies entries of the vector that a view is multiplied with to shared memory.
  FASTSN_DEVICE void stage(int j, int first, int count, A* to) const {
    constexpr int kOther = 1 - kSide;
    constexpr int kUnit = 16 / sizeof(A);
    const Slice& slice = slice_of(j, kOther);
    const bool given = kSide == kRows && call.iteration == 0;
    const bool dense = is_contiguous(slice);
    const int dtype = sizeof(A) == 8 ? kFloat64 : kFloat32;
    if (given && !(dense && weight.given_dtype[j][kOther] == dtype && weight.split[j] == 0)) {
#pragma unroll 1
      for (int e = thread_index(); e < count; e += kThreads) {
        const int index = index_of(slice, first + e);
        to[e] = load_as<A>(weight.given[j][kOther], weight.given_dtype[j][kOther],
                           torch_index(weight.split[j], kOther, slice.length, index));
      }
      return;
    }
    const A* from =
        given ? static_cast<const A*>(weight.given[j][kOther]) : sums_of<A>(call, slice);
    const A divisor = given ? A(1) : static_cast<A>(shared.divisor[j][kOther]);
    const A* begin = from + slice.base + first;
    if (dense && is_aligned(begin) && count % kUnit == 0) {
#pragma unroll 1
      for (int e = kUnit * thread_index(); e < count; e += kUnit * kThreads) {
        auto values = load_bits<Pack<A, kUnit>>(begin + e);
        if (!given) {
#pragma unroll
          for (int k = 0; k < kUnit; ++k) values.value[k] /= divisor;
        }
        put_pack(to + e, values.value);
      }
    } else {
#pragma unroll 1
      for (int e = thread_index(); e < count; e += kThreads) {
        to[e] = from[index_of(slice, first + e)] / divisor;
      }
    }
  }

  // What the first columns need; behind the next barrier it is there.
  FASTSN_DEVICE void stage_first() const {
    const int all = static_cast<int>(weight.packs.divisor) * weight.width;
    const int count = tile.cols < all ? tile.cols : all;
    if (roles.over_rows >= 0) stage(roles.over_rows, 0, entries_of(roles.over_rows), rows);
    if (roles.over_groups >= 0) stage(roles.over_groups, 0, tile.size[1], cols);
    if (roles.over_cols >= 0) stage(roles.over_cols, 0, count, cols);
  }

  // The sum of the part sums that threads left of a row.
  FASTSN_DEVICE A row_total(int row, int count) const {
    constexpr int kUnit = 16 / sizeof(A);
    using Values = Pack<A, kUnit>;
    const int packs = static_cast<int>(weight.packs.divisor);
    const A* from = buffer + row * packs;
    A total = 0;
    if (packs % kUnit == 0 && count % kUnit == 0) {
      // lanes read different rows at once: in an order that takes them to different banks
      const int units = packs / kUnit;
      const int once = units % 8 == 0 ? 8 : units % 4 == 0 ? 4 : units % 2 == 0 ? 2 : 1;
      const int turn = count / kUnit % once == 0 ? row / (8 / once) % once : 0;
#pragma unroll 4
      for (int k = 0; k < count / kUnit; ++k) {
        const Values part = *reinterpret_cast<const Values*>(from + (k ^ turn) * kUnit);
#pragma unroll
        for (int i = 0; i < kUnit; ++i) total += part.value[i];
      }
    } else {
#pragma unroll 4
      for (int k = 0; k < count; ++k) total += from[k];
    }
    return total;
  }

  // Adds up the sums over columns.
  FASTSN_DEVICE void write_rows(int count) const {
    const Slice& slice = slice_of(roles.over_cols, kSide);
    A* part = part_of<A>(call, slice);
    if (tile.size[0] < kWarp) {
      for (int row = thread_index() / kWarp; row < tile.size[0]; row += kWarps) {
        const A* from = buffer + row * static_cast<int>(weight.packs.divisor);
        A total = 0;
        for (int k = thread_index() % kWarp; k < count; k += kWarp) total += from[k];
        total = warp_sum(total);
        if (thread_index() % kWarp == 0) part[index_of(slice, row)] = total;
      }
    } else {
      for (int row = thread_index(); row < tile.size[0]; row += kThreads) {
        part[index_of(slice, row)] = row_total(row, count);
      }
    }
  }

  // Adds up the sums over rows, of the columns from `first` on, that threads have left in `cols`.
  template <int kCount>
  FASTSN_DEVICE void write_cols(int first, int count) const {
    const Slice& slice = slice_of(roles.over_rows, kSide);
    A* part = part_of<A>(call, slice);
    const int step = static_cast<int>(weight.packs.divisor) * kCount;
    const int inner = tile.size[2];
    const auto accept = [&](int m, A total) {
      if (roles.fold_sums) {
        const int group = quotient(weight.inner, m);
        buffer[m + (inner % 2 == 0 ? group : 0)] = total;  // strides are odd
      } else {
        part[index_of(slice, first + m)] = total;
      }
    };
    if (count <= kWarps) {  // and many parts of each
#pragma unroll 1
      for (int m = thread_index() / kWarp; m < count; m += kWarps) {
        A total = 0;
#pragma unroll 4
        for (int k = thread_index() % kWarp; k < weight.row_step; k += kWarp) {
          total += cols[k * step + m];
        }
        total = warp_sum(total);
        if (thread_index() % kWarp == 0) accept(m, total);
      }
    } else {
      for (int m = thread_index(); m < count; m += kThreads) {
        A total = cols[m];
#pragma unroll 4
        for (int k = 1; k < weight.row_step; ++k) total += cols[k * step + m];
        accept(m, total);
      }
    }
    if (!roles.fold_sums) return;
    block_barrier();
    for (int group = thread_index(); group < tile.size[1]; group += kThreads) {
      const A* from = buffer + group * (inner % 2 == 0 ? inner + 1 : inner);
      A total = 0;
#pragma unroll 4
      for (int k = 0; k < inner; ++k) total += from[k];
      part[index_of(slice, group)] = total;
    }
  }

  template <int kCount, bool kAligned, bool kOverCols, RowFactor kFactor, bool kOverGroups>
  FASTSN_DEVICE void run() const {
    const int packs = static_cast<int>(weight.packs.divisor);
    const int first_row = quotient(weight.packs, thread_index());
    const int own = (thread_index() - first_row * packs) * kCount;
    const int inner = tile.size[2];
    const int all = packs * kCount;
#pragma unroll 1
    for (int first = 0; first < tile.cols; first += all) {
      const int count = tile.cols - first < all ? tile.cols - first : all;
      const bool last = first + all >= tile.cols;
      const bool active = first_row < weight.row_step && own < count;
      Pack<A, kCount> x = {};
      if constexpr (kOverCols) {
        if (first > 0) {
          stage(roles.over_cols, first, count, cols);
          block_barrier();
        }
        if (active) x = *reinterpret_cast<const Pack<A, kCount>*>(cols + own);
      }
      Pack<A, kCount> total = {};
      int place[kCount];
      if constexpr (kFactor == kVector || kFactor == kAny) {
#pragma unroll
        for (int k = 0; k < (kFactor == kAny ? kCount : 1); ++k) {
          place[k] = own + k - quotient(weight.inner, own + k) * inner;
        }
      }
      const T* data = static_cast<const T*>(weight.data) + tile.origin + first + own;
      const auto each = [&](auto alone, int row, const Pack<T, kCount>& pack, A* to) {
        A w[kCount];
#pragma unroll
        for (int k = 0; k < kCount; ++k) w[k] = widen(pack.value[k]);
        if constexpr (kOverCols) {
          A part = w[0] * x.value[0];
#pragma unroll
          for (int k = 1; k < kCount; ++k) part += w[k] * x.value[k];
          A& sum = buffer[row * packs + own / kCount];
          sum = decltype(alone)::kValue ? part : sum + part;
        }
        if constexpr (kFactor == kOne) {
          const A factor = rows[row];
#pragma unroll
          for (int k = 0; k < kCount; ++k) total.value[k] += w[k] * factor;
        } else if constexpr (kFactor == kVector) {
          const auto factor =
              *reinterpret_cast<const Pack<A, kCount>*>(rows + row * inner + place[0]);
#pragma unroll
          for (int k = 0; k < kCount; ++k) total.value[k] += w[k] * factor.value[k];
        } else if constexpr (kFactor == kAny) {
#pragma unroll
          for (int k = 0; k < kCount; ++k) total.value[k] += w[k] * rows[row * inner + place[k]];
        }
        if constexpr (kOverGroups) put(pack, to);
      };
      if constexpr (kOverGroups) {
        run_groups<kCount, kAligned>(
            data, first_row, own, active,
            [&](int row, const Pack<T, kCount>& pack, A* to) { each(Count<1>(), row, pack, to); });
      } else if (active) {
        const auto walk = [&](auto alone) {
          for_rows<kCount, kAligned>(
              data + static_cast<int64_t>(first_row) * tile.row_stride, tile.row_stride, first_row,
              tile.size[0], weight.row_step,
              [&](int row, const Pack<T, kCount>& pack) { each(alone, row, pack, nullptr); });
        };
        if (!kOverCols || first == 0) {
          walk(Count<1>());  // no sums are there yet
        } else {
          walk(Count<0>());
        }
      }
      if constexpr (kOverCols) {
        block_barrier();  // everyone has its columns, and has left its parts
        if (last) write_rows(first == 0 ? count / kCount : packs);
      }
      if constexpr (kFactor != kNone) {
        if (active) *reinterpret_cast<Pack<A, kCount>*>(cols + kCount * thread_index()) = total;
        block_barrier();
        write_cols<kCount>(first, count);
      }
      if (!last) block_barrier();
    }
  }

  // The only row of a tile, of which every thread has some packs: sums stay in registers, and
  // neither columns nor parts pass through shared memory.
  template <int kCount, bool kAligned>
  FASTSN_DEVICE void run_row() const {
    constexpr int kOther = 1 - kSide;
    const Slice& slice = slice_of(0, kCols);
    const T* data = static_cast<const T*>(weight.data) + tile.origin;
    const bool given = kSide == kRows && call.iteration == 0;
    const A divisor = given ? A(1) : static_cast<A>(shared.divisor[0][kOther]);
    const A* v = given ? static_cast<const A*>(weight.given[0][kCols]) : sums_of<A>(call, slice);
    v += slice.base;
    const A u = kSide == kCols ? *sums_of<A>(call, slice_of(0, kRows)) / divisor : A(0);
    A* t = part_of<A>(call, slice) + slice.base;
    double total[1] = {};
    A sum = 0;
#pragma unroll 4
    for (int e = kCount * thread_index(); e < tile.cols; e += kCount * kThreads) {
      const auto pack = load_pack<kCount, kAligned>(data + e);
      A w[kCount];
#pragma unroll
      for (int k = 0; k < kCount; ++k) w[k] = widen(pack.value[k]);
      if constexpr (kSide == kCols) {
#pragma unroll
        for (int k = 0; k < kCount; ++k) w[k] *= u;
        store_pack<true>(t + e, w);
      } else {
        const auto x = load_pack<kCount, true>(v + e);
#pragma unroll
        for (int k = 0; k < kCount; ++k) sum += w[k] * (given ? x.value[k] : x.value[k] / divisor);
      }
    }
    if constexpr (kSide == kRows) {
      total[0] = sum;
      block_sum(total, const_cast<double*>(shared.warps));
      if (thread_index() == 0) *part_of<A>(call, slice_of(0, kRows)) = static_cast<A>(total[0]);
    }
  }

  // Whether there is but one row, and all vectors are numbers side by side.
  FASTSN_DEVICE bool is_row() const {
    if (weight.views != 1 || weight.size[0] != 1 || shared.place.form[0] != kPlain) return false;
    if (weight.width == 1 || weight.split[0] != 0) return false;
    if (kSide == kCols || call.iteration > 0) return true;
    const int dtype = sizeof(A) == 8 ? kFloat64 : kFloat32;
    return weight.given_dtype[0][kCols] == dtype && is_aligned(weight.given[0][kCols]);
  }

  // Entries that a view's product over rows takes.
  FASTSN_DEVICE int entries_of(int j) const {
    return shared.place.form[j] == kFold ? tile.size[0] * tile.size[2] : tile.size[0];
  }

  // Some rows at a time, through shared memory: each(row, pack, to) for all of them, which stores
  // the pack, then use(begin, count).
  template <int kCount, bool kAligned, typename Each, typename Use>
  FASTSN_DEVICE void run_through(const FoldLayout& layout, const T* data, int first_row, int own,
                                 bool active, Each each, Use use) const {
#pragma unroll 1
    for (int begin = 0; begin < tile.size[0]; begin += layout.rows) {
      const int left = tile.size[0] - begin;
      const int count = left < layout.rows ? left : layout.rows;
      if (active) {
        const int64_t offset = static_cast<int64_t>(begin + first_row) * tile.row_stride;
        for_rows<kCount, kAligned>(data + offset, tile.row_stride, begin + first_row, begin + count,
                                   weight.row_step, [&](int row, const Pack<T, kCount>& pack) {
                                     each(row, pack, buffer + layout.place(row - begin, own));
                                   });
      }
      block_barrier();
      use(begin, count);
      block_barrier();
    }
  }

  template <int kCount, bool kAligned, typename Each>
  FASTSN_DEVICE void run_groups(const T* data, int first_row, int own, bool active,
                                Each each) const {
    const auto layout = FoldLayout::make<A, kCount>(weight, tile);
    const Slice& slice = slice_of(roles.over_groups, kSide);
    A* part = part_of<A>(call, slice);
    run_through<kCount, kAligned>(
        layout, data, first_row, own, active, each, [&](int begin, int count) {
          const int entry = begin * tile.size[2];
          fold_rows(
              layout, tile, count, buffer, cols, rows + kRowEntries / 2,
              [&](int e, A total) { part[index_of(slice, entry + e)] = total; },
              [&](int e, const A(&total)[4]) {
                store_pack<true>(part + slice.base + entry + e, total);
              });
        });
  }

  // s of a plain and of a folded unfolding with groups of 9: two lanes have a row, so that what it
  // is multiplied with in all groups stays in registers.
  template <int kCount, bool kAligned>
  FASTSN_DEVICE void run_nines() const {
    const auto layout = FoldLayout::make<A, kCount>(weight, tile);
    const int packs = static_cast<int>(weight.packs.divisor);
    const int first_row = quotient(weight.packs, thread_index());
    const int own = (thread_index() - first_row * packs) * kCount;
    const Slice& slice = slice_of(roles.over_cols, kSide);
    A* part = part_of<A>(call, slice) + slice.base;
    A of_groups[2][4] = {};
    const T* data = static_cast<const T*>(weight.data) + tile.origin + own;
    run_through<kCount, kAligned>(
        layout, data, first_row, own, first_row < weight.row_step && own < tile.cols,
        [&](int, const Pack<T, kCount>& pack, A* to) { put(pack, to); },
        [&](int begin, int count) {
          A total = 0;
          A of_row[9];
          for_nines(
              count, tile.size[1],
              [&](int h, int row, int quarter) {
                const A* from = buffer + row * FoldLayout::kNines + quarter * 36;
#pragma unroll
                for (int k = 0; k < 9; ++k) of_row[k] = rows[(begin + row) * 9 + k];
#pragma unroll
                for (int j = 0; j < 9; ++j) {
                  const auto w = pack_of_nines(from, j);
                  const auto x = pack_of_nines(cols + quarter * 36, j);
#pragma unroll
                  for (int k = 0; k < 4; ++k) {
                    total += w.value[k] * x.value[k];
                    of_groups[h][(4 * j + k) / 9] += w.value[k] * of_row[(4 * j + k) % 9];
                  }
                }
              },
              [&](int row, bool valid) {
                total += exchange(total, 1);
                if (valid && thread_index() % 2 == 0) part[begin + row] = total;
                total = 0;
              });
        });
    write_groups(layout, of_groups);
  }

  // Adds up over all rows what threads have of up to 16 groups, by way of the working memory.
  FASTSN_DEVICE void write_groups(const FoldLayout& layout, const A (&of_groups)[2][4]) const {
    constexpr int kStride = kThreads / 2 + 2;  // and 8 groups are 16 banks apart
    const int own = thread_index() / 2;
    const int quarter = thread_index() % 2 * 2;
    const int turn = own / 2 % 2;
    int count = tile.size[0] < layout.rows ? tile.size[0] : layout.rows;
    if (count > kThreads / 2) count = kThreads / 2;
    if (own < count) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          buffer[((quarter + (h ^ turn)) * 4 + k) * kStride + own] = of_groups[h][k];
        }
      }
    }
    block_barrier();
    const Slice& slice = slice_of(roles.over_rows, kSide);
    A* part = part_of<A>(call, slice) + slice.base;
    const int lane = thread_index() % kWarp;
#pragma unroll 1
    for (int k = thread_index() / kWarp; k < 8; k += kWarps) {
      const int group = k + lane / 16 * 8;
      A total = 0;
#pragma unroll 4
      for (int i = lane % 16; i < count; i += 16) total += buffer[group * kStride + i];
#pragma unroll
      for (int distance = 8; distance > 0; distance /= 2) total += exchange(total, distance);
      if (lane % 16 == 0 && group < tile.size[1]) part[group] = total;
    }
  }

  // Stores a pack in shared memory, as numbers that sums are made of.
  template <int kCount>
  FASTSN_DEVICE static void put(const Pack<T, kCount>& pack, A* to) {
    constexpr int kUnit = kCount * sizeof(A) > 16 ? 16 / sizeof(A) : kCount;
#pragma unroll
    for (int k = 0; k < kCount; k += kUnit) {
      A unit[kUnit];
#pragma unroll
      for (int i = 0; i < kUnit; ++i) unit[i] = widen(pack.value[k + i]);
      put_pack(to + k, unit);
    }
  }

  template <int kCount, bool kAligned>
  FASTSN_DEVICE void run_as() const {
    if constexpr (kSide == kCols) {
      if (roles.over_groups >= 0 && roles.over_rows >= 0)
        return run<kCount, kAligned, false, kOne, true>();
      if (roles.over_groups >= 0) return run<kCount, kAligned, false, kNone, true>();
      if (roles.over_cols < 0) return run<kCount, kAligned, false, kOne, false>();
      if (roles.over_rows < 0) return run<kCount, kAligned, true, kNone, false>();
      return run<kCount, kAligned, true, kOne, false>();
    } else {
      if (roles.over_rows < 0) return run<kCount, kAligned, true, kNone, false>();
      const bool both = roles.over_cols >= 0;
      if (!roles.fold_sums) {
        return both ? run<kCount, kAligned, true, kOne, false>()
                    : run<kCount, kAligned, false, kOne, false>();
      }
      if (kCount == 1 || tile.size[2] % kCount == 0) {
        return both ? run<kCount, kAligned, true, kVector, false>()
                    : run<kCount, kAligned, false, kVector, false>();
      }
      if constexpr (kCount > 1) {
        if constexpr (sizeof(A) == 4) {
          if (both && FoldLayout::make<A, kCount>(weight, tile).nine) {
            return run_nines<kCount, kAligned>();
          }
        }
        return both ? run<kCount, kAligned, true, kAny, false>()
                    : run<kCount, kAligned, false, kAny, false>();
      }
    }
  }
};

}  // namespace fastsn
