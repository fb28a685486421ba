// SPDX-License-Identifier: MIT
//
// What tests/ptx/machine.py calls.
#include <cstring>
#include <sstream>
#include <stdexcept>

#include "kernels.h"

namespace ptx {

namespace {

using Translate = void (*)(const char* kernel);  // has to call ptx_define
Translate translate = nullptr;

s64& option(const std::string& name) {
  static const std::map<std::string, s64 Options::*> members = {
      {"order", &Options::order},
      {"seed", &Options::seed},
      {"resident", &Options::resident},
      {"quantum", &Options::quantum},
      {"split", &Options::split},
      {"early_copies", &Options::early_copies},
      {"equal_writes", &Options::equal_writes},
      {"absent_line", &Options::absent_line},
      {"limit", &Options::limit}};
  return options().*members.at(name);
}

std::string statistics() {
  std::ostringstream out;
  out << "{\"launches\": [";
  const char* comma = "";
  for (const Cost& cost : costs()) {
    out << comma << "{\"kernel\": \"" << cost.kernel << "\", \"blocks\": " << cost.blocks
        << ", \"threads\": " << cost.threads << ", \"shared_bytes\": " << cost.shared_bytes
        << ", \"barriers\": " << cost.barriers << ", \"issued\": [";
    for (size_t k = 0; k < cost.issued.size(); ++k) out << (k ? "," : "") << cost.issued[k];
    out << "]}";
    comma = ", ";
  }
  out << "], \"kernels\": {";
  comma = "";
  for (const auto& [name, kernel] : kernels()) {
    out << comma << "\"" << name << "\": [";
    comma = "";
    for (const Instruction& in : kernel->code) {
      const Counts& c = in.counts;
      out << comma << "[\"" << in.name << "\", " << in.line << ", \"" << in.where << "\", "
          << in.access.space << ", " << in.access.count * in.access.bytes << ", " << c.issued
          << ", " << c.lanes << ", " << c.bytes << ", " << c.sectors << ", " << c.least << "]";
      comma = ", ";
    }
    out << "]";
    comma = ", ";
  }
  out << "}}";
  return out.str();
}

template <typename Function>
const char* text_of(Function function) {
  static std::string text;
  try {
    text = function();
  } catch (const std::exception& error) {
    text = error.what();
  }
  return text.c_str();
}

}  // namespace

std::map<std::string, std::unique_ptr<Kernel>>& kernels() {
  static std::map<std::string, std::unique_ptr<Kernel>> kernels;
  return kernels;
}

void launch(const std::string& name, u32 blocks, u32 threads, s64 shared_bytes,
            const void* const* parameters, s64 parameter_bytes, s64 used_bytes) {
  if (!kernels().count(name) && translate) translate(name.c_str());
  const auto found = kernels().find(name);
  if (found == kernels().end()) throw std::runtime_error("expected a kernel, got " + name);
  Kernel& kernel = *found->second;
  if (parameter_bytes >= 0 && parameter_bytes != kernel.parameter_bytes()) {
    throw std::runtime_error(name + " takes " + std::to_string(kernel.parameter_bytes()) +
                             " bytes of parameters, got " + std::to_string(parameter_bytes));
  }
  Launch(kernel, blocks, threads, shared_bytes, parameters, used_bytes).run();
}

}  // namespace ptx

extern "C" {

void ptx_set_translator(ptx::Translate translate) { ptx::translate = translate; }

// These return what went wrong, or an empty string.
const char* ptx_define(const char* bytecode) {
  return ptx::text_of([&] {
    auto kernel = ptx::read_kernel(bytecode);
    const std::string name = kernel->name;
    ptx::kernels()[name] = std::move(kernel);
    return std::string();
  });
}
const char* ptx_launch(const char* name, uint32_t blocks, uint32_t threads, int64_t shared_bytes,
                       const void* const* parameters) {
  return ptx::text_of([&] {
    ptx::launch(name, blocks, threads, shared_bytes, parameters);
    return std::string();
  });
}

void ptx_forget_kernel(const char* name) { ptx::kernels().erase(name); }
void ptx_set_option(const char* name, int64_t value) { ptx::option(name) = value; }

void ptx_add_memory(const void* base, int64_t bytes, int granule, int written, const char* name) {
  if (bytes > 0) ptx::memory().add(base, bytes, granule, written != 0, name);
}
void ptx_clear_memory() { ptx::memory().clear(); }
int64_t ptx_unwritten(const void* base) {
  const ptx::Allocation* own = ptx::memory().find(reinterpret_cast<ptx::u64>(base));
  return own ? own->unwritten() : -1;
}

const char* ptx_reports() { return ptx::reports().text().c_str(); }
void ptx_clear_reports() { ptx::reports().clear(); }
const char* ptx_statistics() { return ptx::text_of(ptx::statistics); }
void ptx_clear_statistics() {
  ptx::costs().clear();
  for (auto& [name, kernel] : ptx::kernels()) {
    for (ptx::Instruction& in : kernel->code) in.counts = {};
  }
}

}  // extern "C"
