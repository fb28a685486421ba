// SPDX-License-Identifier: MIT
//
// The kernels that are known, and how they are started.
#pragma once

#include "launch.h"

namespace ptx {

std::map<std::string, std::unique_ptr<Kernel>>& kernels();

// Translates a kernel on its first launch. Throws where there is no such kernel, where it has
// instructions that are not supported, and where its parameters do not have as many bytes as they
// should. From `used_bytes` on they may not be read.
void launch(const std::string& name, u32 blocks, u32 threads, s64 shared_bytes,
            const void* const* parameters, s64 parameter_bytes = -1, s64 used_bytes = -1);

}  // namespace ptx
