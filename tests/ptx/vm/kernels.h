// SPDX-License-Identifier: MIT
//
// The kernels that are known, and how they are started.
#pragma once

#include "launch.h"

namespace ptx {

std::map<std::string, std::unique_ptr<Kernel>>& kernels();

// Translates a kernel on its first launch. Throws where there is no such kernel, or where it has
// instructions that are not supported.
void launch(const std::string& name, u32 blocks, u32 threads, s64 shared_bytes,
            const void* const* parameters);

}  // namespace ptx
