// SPDX-License-Identifier: MIT
//
// The schemas of the ops that both extensions have, each in its own namespace.
#pragma once

namespace fastsn {

// `memory`: what the results' Tensor[] is made in as far as it goes (see new_like in arguments.h).
// `bounds`: of soft norms, 0 for hard ones; empty where all are hard.
constexpr char kForwardSchema[] =
    "forward(Tensor[] weights, Tensor(a!)[] us, Tensor(b!)[] vs, int[] dims, int[] kinds, "
    "float[] scales, Tensor? scale_tensor, int n_power_iterations, float eps, "
    "ScalarType? out_dtype, bool store_vectors, Tensor[] memory, float[] bounds) "
    "-> (Tensor[], Tensor, Tensor, Tensor)";

constexpr char kBackwardSchema[] =
    "backward(Tensor[] grads, Tensor? grad_sigmas, Tensor[] weights_sn, Tensor sigmas, "
    "Tensor vectors, Tensor view_stats, int[] dims, int[] kinds, float[] scales, "
    "Tensor? scale_tensor, ScalarType grad_dtype, Tensor[] memory, float[] bounds) "
    "-> (Tensor[], Tensor)";

}  // namespace fastsn
