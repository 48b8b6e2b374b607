// Maxima of products that are not kept, compiled anew for each instruction set; see isa_common.h.
#pragma once

namespace contrastive_ops {
namespace {
#include "vec.h"
#include "convert.h"
#include "product.h"
#include "plan.h"
#include "summary.h"
#include "state.h"
#include "pack.h"
#include "maxima_kernel.h"
#include "tokens_kernel.h"
#if !ISA_BF16
#include "neighbours_kernel.h"
#endif
}  // namespace
}  // namespace contrastive_ops
