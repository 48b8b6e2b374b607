// What the files of an instruction set need from outside, included before the target changes so
// that nothing of it is compiled for that target.
#pragma once
#include <cstdint>
#include <new>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "arena.h"
#include "close.h"
#include "isa.h"
#include "parallel.h"
#include "problem.h"
