// Executes AMX's instructions in the handler of the signal that a processor without them raises: the arithmetic of
// Intel's manual (Software Developer's Manual, volume 2: TDPBF16PS and the TILE instructions), for the forms that the
// kernels use. emulate() installs it, and the counters say what was executed.
#define _GNU_SOURCE
#include <math.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

enum { kConfigured, kReleased, kZeroed, kLoaded, kStored, kMultiplied, kKinds };
long counters[kKinds];
static _Thread_local uint8_t tiles[8][16][64];
static _Thread_local uint8_t shapes[64];  // palette in [0], bytes of a row from [16] on, rows from [48] on

static int bytes_of(int tile) { return shapes[16 + 2 * tile] | shapes[17 + 2 * tile] << 8; }
static int rows_of(int tile) { return shapes[48 + tile]; }

static void fail(const char* why) {
  static const char kPrefix[] = "AMX: ";
  extern long write(int, const void*, unsigned long);
  if (write(2, kPrefix, sizeof(kPrefix) - 1) < 0 || write(2, why, strlen(why)) < 0 || write(2, "\n", 1) < 0) abort();
  abort();
}

static void need(int condition, const char* why) {
  if (!condition) fail(why);
}

// Subnormal numbers are zero, in factors and in results.
static float flushed(float x) { return fpclassify(x) == FP_SUBNORMAL ? copysignf(0.0f, x) : x; }

static float number(const uint8_t* at) {
  const uint32_t bits = (uint32_t)at[0] << 16 | (uint32_t)at[1] << 24;
  float x;
  memcpy(&x, &bits, sizeof(x));
  return flushed(x);
}

static void multiply(int c, int a, int b) {
  need(c != a && c != b && a != b, "a tile twice in a product");
  need(bytes_of(a) / 4 == rows_of(b) && bytes_of(b) == bytes_of(c) && rows_of(a) == rows_of(c), "shapes of a product");
  for (int m = 0; m < rows_of(c); ++m)
    for (int n = 0; n < bytes_of(c) / 4; ++n) {
      float even = 0, odd = 0, sum;
      for (int k = 0; k < rows_of(b); ++k) {
        even = flushed(fmaf(number(tiles[a][m] + 4 * k), number(tiles[b][k] + 4 * n), even));
        odd = flushed(fmaf(number(tiles[a][m] + 4 * k + 2), number(tiles[b][k] + 4 * n + 2), odd));
      }
      memcpy(&sum, tiles[c][m] + 4 * n, sizeof(sum));
      sum = flushed(flushed(sum) + flushed(even + odd));
      memcpy(tiles[c][m] + 4 * n, &sum, sizeof(sum));
    }
}

static const int kRegisters[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                   REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

// One instruction of three-byte VEX prefix, opcode and operands.
struct Instruction {
  const uint8_t* next;
  int prefix, opcode, is_register, reg, rm, vvvv;
  const uint8_t* base;  // of the memory operand
  int64_t index;        // its index register, where it has one
};

static int64_t value(const greg_t* registers, int which) { return registers[kRegisters[which]]; }

static struct Instruction decode(const uint8_t* at, const greg_t* registers) {
  struct Instruction i = {0};
  need(at[0] == 0xc4 && (at[1] & 0x1f) == 2 && (at[2] & 0x84) == 0, "not an instruction of AMX");
  const int r = !(at[1] & 0x80) * 8, x = !(at[1] & 0x40) * 8, b = !(at[1] & 0x20) * 8;
  i.vvvv = ~at[2] >> 3 & 15;
  i.prefix = at[2] & 3;
  i.opcode = at[3];
  const int mode = at[4] >> 6, low = at[4] & 7;
  i.reg = (at[4] >> 3 & 7) + r;
  i.is_register = mode == 3;
  i.next = at + 5;
  if (i.is_register) {
    i.rm = low + b;
    return i;
  }
  int has_base = 1, base = low + b, scale = 0;
  if (low == 4) {
    const int sib = *i.next++;
    base = (sib & 7) + b;
    has_base = !((sib & 7) == 5 && mode == 0);
    scale = 1 << (sib >> 6);
    const int index = (sib >> 3 & 7) + x;
    if (index != 4) i.index = value(registers, index) * scale;
  } else if (low == 5 && mode == 0) {
    int32_t offset;  // from the next instruction
    memcpy(&offset, i.next, sizeof(offset));
    i.next += 4;
    i.base = i.next + offset;
    return i;
  }
  int64_t displacement = 0;
  if (mode == 1) {
    displacement = (int8_t)*i.next++;
  } else if (mode == 2 || !has_base) {
    int32_t wide;
    memcpy(&wide, i.next, sizeof(wide));
    displacement = wide;
    i.next += 4;
  }
  i.base = (const uint8_t*)(has_base ? value(registers, base) : 0) + displacement;
  return i;
}

static void execute(struct Instruction i) {
  enum { kNone, k66, kF3, kF2 };
  if (i.opcode == 0x49 && i.prefix == kNone) {
    memset(tiles, 0, sizeof(tiles));
    memset(shapes, 0, sizeof(shapes));
    if (i.is_register) {
      ++counters[kReleased];
      return;
    }
    memcpy(shapes, i.base + i.index, sizeof(shapes));
    need(shapes[0] == 1 && shapes[1] == 0, "palette");
    for (int j = 0; j < 8; ++j) need(bytes_of(j) <= 64 && rows_of(j) <= 16, "shape of a tile");
    for (int j = 2; j < 16; ++j) need(shapes[j] == 0, "reserved bytes of the shapes");
    for (int j = 32; j < 48; ++j) need(shapes[j] == 0, "shapes of tiles that there are not");
    for (int j = 56; j < 64; ++j) need(shapes[j] == 0, "shapes of tiles that there are not");
    ++counters[kConfigured];
    return;
  }
  need(shapes[0] == 1 && i.reg < 8, "tiles that were not configured");
  if (i.opcode == 0x49 && i.prefix == kF2 && i.is_register) {
    memset(tiles[i.reg], 0, sizeof(tiles[i.reg]));
    ++counters[kZeroed];
  } else if (i.opcode == 0x4b && i.prefix == kF2 && !i.is_register) {
    memset(tiles[i.reg], 0, sizeof(tiles[i.reg]));
    for (int m = 0; m < rows_of(i.reg); ++m) memcpy(tiles[i.reg][m], i.base + m * i.index, bytes_of(i.reg));
    ++counters[kLoaded];
  } else if (i.opcode == 0x4b && i.prefix == kF3 && !i.is_register) {
    for (int m = 0; m < rows_of(i.reg); ++m) memcpy((uint8_t*)i.base + m * i.index, tiles[i.reg][m], bytes_of(i.reg));
    ++counters[kStored];
  } else if (i.opcode == 0x5c && i.prefix == kF3 && i.is_register) {
    multiply(i.reg, i.rm, i.vvvv);
    ++counters[kMultiplied];
  } else {
    fail("an instruction that is not emulated");
  }
}

static void on_illegal_instruction(int signal, siginfo_t* info, void* context) {
  (void)signal, (void)info;
  greg_t* registers = ((ucontext_t*)context)->uc_mcontext.gregs;
  const struct Instruction i = decode((const uint8_t*)registers[REG_RIP], registers);
  execute(i);
  registers[REG_RIP] = (greg_t)i.next;
}

static struct sigaction before;

int emulate(void) {
  struct sigaction action;
  memset(&action, 0, sizeof(action));
  action.sa_sigaction = on_illegal_instruction;
  action.sa_flags = SA_SIGINFO;
  memset(counters, 0, sizeof(counters));
  return sigaction(SIGILL, &action, &before);
}

int leave(void) { return sigaction(SIGILL, &before, NULL); }
