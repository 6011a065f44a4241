/* Counts the AArch64 instructions that qemu-user executes: all, vector multiply-adds and dot products, loads and stores.

   At each getppid(2) of the guest one line with the three running totals is written, so that the guest can mark what
   is to be counted.  Tied to version 1 of QEMU's plugin API (QEMU 6.2 to 8.2; Debian 12 has 7.2), declared here by hand
   because Debian ships no qemu-plugin.h; version 2 replaced these inline sums.  The sums are not atomic: they are exact
   for work done by one thread.

   cc -O2 -shared -fPIC -o armcount.so armcount.c;  qemu-aarch64 -plugin armcount.so,out=FILE ... */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

typedef uint64_t plugin_id;
struct block;
struct instruction;
typedef void (*on_block)(plugin_id, struct block *);
typedef void (*on_syscall)(plugin_id, unsigned cpu, int64_t number, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                           uint64_t, uint64_t, uint64_t);
enum operation { ADD_U64 };

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, on_block);
void qemu_plugin_register_vcpu_tb_exec_inline(struct block *, enum operation, void *total, uint64_t add);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id, on_syscall);
size_t qemu_plugin_tb_n_insns(const struct block *);
struct instruction *qemu_plugin_tb_get_insn(const struct block *, size_t);
const void *qemu_plugin_insn_data(const struct instruction *);

int qemu_plugin_version = 1;
enum { ALL, MULTIPLY_ADD, MEMORY, KINDS };
enum { GETPPID = 173 };
static uint64_t totals[KINDS];
static FILE *out;

/* Vectors of any type: FMLA, FMLS, then SMLAL, UMLAL, then SDOT, UDOT, each by vector and by element; the second line
   is FMLA and FMLS by vector of half precision (Arm ARM, "Advanced SIMD three same", "vector x indexed element"). */
static int multiplies(uint32_t word) {
  return (word & 0xBF20FC00) == 0x0E20CC00 || (word & 0xBF00B400) == 0x0F001000 ||
         (word & 0xBF60FC00) == 0x0E400C00 ||
         (word & 0x9F20FC00) == 0x0E208000 || (word & 0x9F00F400) == 0x0F002000 ||
         (word & 0x9F20FC00) == 0x0E009400 || (word & 0x9F00F400) == 0x0F00E000;
}

static void translated(plugin_id id, struct block *block) {
  uint64_t found[KINDS] = {0};
  found[ALL] = qemu_plugin_tb_n_insns(block);
  for (size_t i = 0; i < found[ALL]; i++) {
    uint32_t word;
    memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, i)), sizeof word);
    found[MEMORY] += (word >> 25 & 5) == 4; /* bits 28..25 are x1x0 */
    found[MULTIPLY_ADD] += multiplies(word);
  }
  for (int kind = 0; kind < KINDS; kind++)
    if (found[kind]) qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &totals[kind], found[kind]);
}

static void called(plugin_id id, unsigned cpu, int64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d,
                   uint64_t e, uint64_t f, uint64_t g, uint64_t h) {
  if (number != GETPPID) return;
  fprintf(out, "%" PRIu64 " %" PRIu64 " %" PRIu64 "\n", totals[ALL], totals[MULTIPLY_ADD], totals[MEMORY]);
  fflush(out);
}

int qemu_plugin_install(plugin_id id, const void *info, int count, char **arguments) {
  for (int i = 0; i < count; i++)
    if (!strncmp(arguments[i], "out=", 4)) out = fopen(arguments[i] + 4, "w");
  if (!out) return 1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_vcpu_syscall_cb(id, called);
  return 0;
}
