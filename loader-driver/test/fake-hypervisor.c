// SPDX-License-Identifier: GPL-2.0
/*
 * Answers hypercalls as a hypervisor would, from the handler of invalid opcodes:
 * without a hypervisor VMCALL and VMMCALL are just that. With the image that
 * comes back with success, this lets the whole module be driven anywhere.
 *
 * Parameters: "fail" is the number of a hypercall that fails at its next call (-1:
 * none), "busy" counts the calls to come that are refused for one of another CPU,
 * "calls" counts calls, "bad" counts those that no hypervisor should be asked.
 */
#include <linux/cpumask.h>
#include <linux/io.h>
#include <linux/kdebug.h>
#include <linux/module.h>
#include <linux/sizes.h>
#include <asm/traps.h>

#include "gaol_abi.h"

static int fail = -1;
module_param(fail, int, 0644);
static int busy;
module_param(busy, int, 0644);
static int calls;
module_param(calls, int, 0444);
static int bad;
module_param(bad, int, 0644);

/* Pieces that each cell has left to be scrubbed, and whether it was told to end. */
static unsigned int pieces[GAOL_MAX_CELLS];
static bool ending[GAOL_MAX_CELLS];
static bool exists[GAOL_MAX_CELLS];

static bool configuration_is_right(const struct gaol_cell_header *header)
{
	const struct gaol_memory_region *region = (const void *)(header + 1);
	unsigned int index, cpu;

	if (memcmp(header->preamble.signature, GAOL_CONFIG_CELL_SIGNATURE, 8))
		return false;
	for (cpu = 0; cpu < 64; cpu++)
		if (header->cpus[0] >> cpu & 1 && cpu_online(cpu))
			return false;
	for (index = 0; index < header->memory_region_count; index++) {
		if (region[index].flags & GAOL_CONFIG_MEMORY_COMMUNICATION)
			continue;
		if (!region[index].physical || !PAGE_ALIGNED(region[index].physical))
			return false;
		if (region[index].size >= SZ_2M &&
		    !IS_ALIGNED(region[index].physical, SZ_2M))
			return false;
	}
	return true;
}

static long create(u64 physical)
{
	unsigned int id;

	if (!configuration_is_right(phys_to_virt(physical)))
		return -EINVAL;
	for (id = 1; id < GAOL_MAX_CELLS; id++) {
		if (exists[id])
			continue;
		exists[id] = true;
		ending[id] = false;
		pieces[id] = 5;
		return id;
	}
	return -EBUSY;
}

static long destroy(u64 id)
{
	if (!ending[id]) {
		ending[id] = true;
		pieces[id] = 5;
		return -EAGAIN;
	}
	if (pieces[id])
		return -EAGAIN;
	exists[id] = false;
	return 0;
}

static atomic_t failed;

static long answer(u32 number, u64 first, u64 second)
{
	calls++;
	if (number == READ_ONCE(fail)) {
		/* All CPUs disable together, and fail together. */
		if (number != GAOL_HYPERCALL_DISABLE ||
		    arch_atomic_inc_return(&failed) % first == 0)
			WRITE_ONCE(fail, -1);
		return -EIO;
	}
	if (number != GAOL_HYPERCALL_DISABLE && READ_ONCE(busy) > 0) {
		WRITE_ONCE(busy, busy - 1);
		return -EINPROGRESS;
	}
	switch (number) {
	case GAOL_HYPERCALL_DISABLE:
		return first == num_online_cpus() ? 0 : -EINVAL;
	case GAOL_HYPERCALL_CELL_CREATE:
		return create(first);
	case GAOL_HYPERCALL_CELL_GET_STATE:
		return first ? GAOL_CELL_STATE_SHUT_DOWN : GAOL_CELL_STATE_RUNNING;
	}
	if (first >= GAOL_MAX_CELLS || !exists[first])
		return -ENOENT;
	switch (number) {
	case GAOL_HYPERCALL_CELL_START:
	case GAOL_HYPERCALL_CELL_SET_LOADABLE:
		return 0;
	case GAOL_HYPERCALL_CELL_DESTROY:
		return destroy(first);
	case GAOL_HYPERCALL_SCRUB:
		return pieces[first] ? --pieces[first] : 0;
	}
	return -ENOSYS;
}

static int on_die(struct notifier_block *block, unsigned long event, void *data)
{
	struct die_args *arguments = data;
	struct pt_regs *registers = arguments->regs;
	const u8 *code = (const u8 *)registers->ip;

	if (arguments->trapnr != X86_TRAP_UD || user_mode(registers) ||
	    code[0] != 0x0f || code[1] != 0x01 ||
	    (code[2] != 0xc1 && code[2] != 0xd9))
		return NOTIFY_DONE;
	registers->ax = answer(registers->ax, registers->di, registers->si);
	if (registers->ax == -EINVAL || registers->ax == -ENOENT ||
	    registers->ax == -ENOSYS)
		bad++;
	registers->ip += 3;
	return NOTIFY_STOP;
}

static struct notifier_block notifier = { .notifier_call = on_die };

static int __init fake_init(void)
{
	return register_die_notifier(&notifier);
}

static void __exit fake_exit(void)
{
	unregister_die_notifier(&notifier);
}

module_init(fake_init);
module_exit(fake_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Answers hypercalls without a hypervisor");
