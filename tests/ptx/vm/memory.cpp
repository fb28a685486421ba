// SPDX-License-Identifier: MIT
#include "memory.h"

#include <algorithm>

namespace ptx {

s64 Allocation::unwritten() const {
  return std::count_if(cells.begin(), cells.end(), [](Cell c) { return c.writer == kNobody; });
}

void Allocation::write_by_host(u64 first, u64 last) {
  for (u64 k = first; k <= last; ++k) cells[k] = {kHost, 0, kNobody, 0};
}

void Memory::write_by_host(const void* address, s64 bytes) {
  const u64 first = reinterpret_cast<u64>(address);
  Allocation* own = find(first);
  if (bytes == 0 || !own) return;
  const u64 offset = first - own->base;
  own->write_by_host(offset >> own->shift, (offset + bytes - 1) >> own->shift);
}

Memory& memory() {
  static Memory memory;
  return memory;
}

Allocation& Memory::add(const void* base, s64 bytes, int granule, bool written,
                        const std::string& name) {
  const u64 begin = reinterpret_cast<u64>(base);
  // what overlaps has been freed, and its memory given out again
  auto it = allocations_.lower_bound(begin);
  if (it != allocations_.begin()) {
    const auto before = std::prev(it);
    if (before->first + static_cast<u64>(before->second->bytes) > begin) it = before;
  }
  while (it != allocations_.end() && it->first < begin + static_cast<u64>(bytes)) {
    it = allocations_.erase(it);
  }
  const int shift = __builtin_ctz(static_cast<u32>(granule));
  const s64 cells = (bytes + granule - 1) >> shift;
  auto own =
      std::make_unique<Allocation>(Allocation{begin, bytes, shift, name, std::vector<Cell>(cells)});
  if (written) own->write_by_host(0, own->cells.size() - 1);
  return *(allocations_[begin] = std::move(own));
}

Allocation* Memory::find(u64 address) {
  auto it = allocations_.upper_bound(address);
  if (it == allocations_.begin()) return nullptr;
  Allocation* before = std::prev(it)->second.get();
  return address - before->base < static_cast<u64>(before->bytes) ? before : nullptr;
}

std::string Memory::describe(u64 address) {
  auto it = allocations_.upper_bound(address);
  if (it == allocations_.begin()) return "address " + std::to_string(address);
  const Allocation& near = *std::prev(it)->second;
  return near.name + " + " + std::to_string(address - near.base) + " of " +
         std::to_string(near.bytes) + " bytes";
}

}  // namespace ptx
