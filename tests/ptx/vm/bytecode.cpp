// SPDX-License-Identifier: MIT
#include "bytecode.h"

#include <cstring>
#include <map>
#include <sstream>
#include <stdexcept>

#include "launch.h"

namespace ptx {
namespace {

const Operations& operations() {
  static const Operations all = [] {
    Operations o;
    add_integers(o);
    add_floats(o);
    add_accesses(o);
    add_shuffles(o);
    o["bra"] = o["brx"] = {nullptr, Control::kBranch};
    o["ret"] = {nullptr, Control::kExit};
    o["trap"] = {nullptr, Control::kTrap};
    o["bar.sync"] = {nullptr, Control::kBlockBarrier};
    return o;
  }();
  return all;
}

void fill(char* lanes, int width, u64 bits) {
  for (int lane = 0; lane < kLanes; ++lane) std::memcpy(lanes + lane * width, &bits, width);
}

Instruction read_instruction(std::istream& in) {
  Instruction x;
  int negated, is_signed, acquire, release, strong, space;
  in >> x.name >> x.line >> x.where >> x.guard >> negated >> x.targets;
  for (int k = 0; k < x.targets; ++k) in >> x.target[k];
  in >> x.sources;
  for (int k = 0; k < x.sources; ++k) in >> x.source[k];
  Access& a = x.access;
  in >> x.immediate >> x.second >> x.branch >> x.branches >> space >> a.count >> a.bytes >>
      a.register_bytes >> is_signed >> acquire >> release >> strong;
  x.negated = negated;
  a.space = static_cast<Space>(space);
  a.is_signed = is_signed;
  a.acquire = acquire;
  a.release = release;
  a.strong = strong;
  return x;
}

}  // namespace

std::unique_ptr<Kernel> read_kernel(const std::string& text) {
  std::istringstream in(text);
  auto kernel = std::make_unique<Kernel>();
  size_t parameters, constants, branches, instructions;
  in >> kernel->name >> kernel->register_bytes >> kernel->shared_bytes >> kernel->local_bytes >>
      kernel->granule_shift >> parameters >> constants >> branches >> instructions;
  kernel->parameters.resize(parameters);
  for (Parameter& own : kernel->parameters) in >> own.offset >> own.bytes;
  kernel->constants.resize(constants * kConstantBytes);
  for (size_t k = 0; k < constants; ++k) {
    int width;
    u64 bits;
    in >> width >> bits;
    fill(&kernel->constants[k * kConstantBytes], width, bits);
  }
  kernel->branches.resize(branches);
  for (s32& place : kernel->branches) in >> place;
  std::map<std::string, int> unknown;
  for (size_t k = 0; k < instructions; ++k) {
    Instruction& own = kernel->code.emplace_back(read_instruction(in));
    const auto found = operations().find(own.name);
    if (found == operations().end()) {
      ++unknown[own.name];
      continue;
    }
    own.run = found->second.run;
    own.control = found->second.control;
    if (options().absent_line && own.line == options().absent_line) {
      own.control = Control::kNone;
      own.run = [](Launch&, Warp&, Instruction&, u32) {};
    }
  }
  if (!in) throw std::runtime_error("the bytecode of " + kernel->name + " ends early");
  if (!unknown.empty()) {
    std::string names;
    for (const auto& [name, count] : unknown) names += " " + name;
    throw std::runtime_error("not supported in " + kernel->name + ":" + names);
  }
  return kernel;
}

}  // namespace ptx
