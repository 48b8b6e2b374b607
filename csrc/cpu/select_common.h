// The selection, compiled anew for each instruction set; see isa_common.h.
#pragma once

namespace contrastive_ops {
namespace {
template <class Acc>
struct RowScale;
#include "vec.h"
#include "convert.h"
#include "product.h"
#include "pack.h"
#include "score.h"
#include "select_scan.h"
#include "select_kernel.h"
}  // namespace
}  // namespace contrastive_ops
