// What the selection needs from outside, included before an instruction set is switched on.
#pragma once
#include "isa_prelude.h"

#include "flush.h"
#include "select.h"
