// Everything that is compiled anew for each instruction set, in an order that works. The including
// file has included isa_prelude.h, switched the target on and set the macros of vec.h.
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
#include "exclusions.h"
#include "statistics.h"
#include "summarise.h"
#include "direct.h"
#include "scan.h"
#include "coefficients.h"
#include "gradients.h"
#include "prologue.h"
#include "closing.h"
#include "prefixes.h"
#include "kernel.h"
}  // namespace
}  // namespace contrastive_ops
