// SPDX-License-Identifier: GPL-2.0
/* Takes the NMIs that nobody else wants, and counts them: parameter "taken". */
#include <linux/atomic.h>
#include <linux/module.h>
#include <linux/nmi.h>
#include <asm/nmi.h>

static int taken;
module_param(taken, int, 0444);

static int take(unsigned int type, struct pt_regs *registers)
{
	arch_atomic_inc((atomic_t *)&taken);
	return NMI_HANDLED;
}

static int __init swallow_init(void)
{
	return register_nmi_handler(NMI_UNKNOWN, take, 0, "gaol-swallow");
}

static void __exit swallow_exit(void)
{
	unregister_nmi_handler(NMI_UNKNOWN, "gaol-swallow");
}

module_init(swallow_init);
module_exit(swallow_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Takes the NMIs that nobody else wants");
