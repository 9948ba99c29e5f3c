// SPDX-License-Identifier: GPL-2.0
/*
 * What must be right before a launch: the image, the configuration, the CPUs.
 *
 * Invariant: nothing is changed here, but that VMX is enabled and locked where
 * the firmware has left it open, as KVM does it.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cpu.h>
#include <linux/mm.h>
#include <linux/sizes.h>
#include <linux/smp.h>
#include <asm/desc.h>
#include <asm/msr.h>
#include <asm/processor.h>
#include <asm/special_insns.h>

#include "launch.h"

#define MAX_CPU_AREA		SZ_1M

#define FEATURE_CONTROL_LOCKED	BIT(0)
#define FEATURE_CONTROL_VMX	BIT(2)
#define VM_CR_SVM_DISABLED	BIT(4)

/* The image */

static bool piece_fits(u64 offset, u64 size, u64 limit)
{
	return PAGE_ALIGNED(offset) && PAGE_ALIGNED(size) && offset <= limit &&
	       size <= limit - offset;
}

static bool header_is_consistent(const struct gaol_image_header *header,
				 u64 size)
{
	u64 limit = header->memory_size;

	return header->file_size == size && size <= limit &&
	       PAGE_ALIGNED(limit) && limit <= SZ_1G &&
	       piece_fits(header->text, header->text_size, limit) &&
	       piece_fits(header->rodata, header->rodata_size, limit) &&
	       piece_fits(header->data, header->data_size, limit) &&
	       header->entry >= header->text &&
	       header->entry - header->text < header->text_size &&
	       header->cpu_area_size && PAGE_ALIGNED(header->cpu_area_size) &&
	       header->cpu_area_size <= MAX_CPU_AREA;
}

static u32 cpu_vendor(void)
{
	switch (boot_cpu_data.x86_vendor) {
	case X86_VENDOR_AMD:
	case X86_VENDOR_HYGON:
		return GAOL_VENDOR_SVM;
	default:
		return GAOL_VENDOR_VMX;
	}
}

int gaol_check_image(const struct gaol_image_header *header, u64 size,
		     struct gaol_outcome *outcome)
{
	if (size < sizeof(*header) ||
	    memcmp(header->signature, GAOL_IMAGE_SIGNATURE,
		   sizeof(header->signature)))
		return gaol_refuse(outcome, GAOL_REASON_IMAGE_INVALID, 0,
				   -EINVAL);
	if (header->abi_revision != GAOL_ABI_REVISION)
		return gaol_refuse(outcome, GAOL_REASON_IMAGE_REVISION,
				   header->abi_revision, -EINVAL);
	if (header->vendor != cpu_vendor())
		return gaol_refuse(outcome, GAOL_REASON_IMAGE_VENDOR,
				   header->vendor, -ENODEV);
	if (header->checksum !=
	    gaol_checksum(header, size, GAOL_IMAGE_CHECKSUM_OFFSET))
		return gaol_refuse(outcome, GAOL_REASON_IMAGE_INVALID, 0,
				   -EINVAL);
	if (!header_is_consistent(header, size))
		return gaol_refuse(outcome, GAOL_REASON_IMAGE_INVALID, 0,
				   -EINVAL);
	return 0;
}

/* The configuration */

int gaol_check_config(const struct gaol_system_header *config, u64 size,
		      struct gaol_outcome *outcome)
{
	int error = gaol_check_preamble(config, size,
					GAOL_CONFIG_SYSTEM_SIGNATURE,
					sizeof(*config), outcome);
	if (error)
		return error;
	if (!gaol_name_is_valid(config->name))
		return gaol_refuse(outcome, GAOL_REASON_NAME_INVALID, 0,
				   -EINVAL);
	if (!config->hypervisor_size ||
	    !IS_ALIGNED(config->hypervisor_size, SZ_2M) ||
	    !IS_ALIGNED(config->hypervisor_physical, SZ_2M))
		return gaol_refuse(outcome, GAOL_REASON_CONFIGURATION_INVALID,
				   size, -EINVAL);
	/* In the hypervisor's tables it lies in the slot of Linux' image. */
	if (config->hypervisor_size > KERNEL_IMAGE_SIZE)
		return gaol_refuse(outcome, GAOL_REASON_CONFIGURATION_INVALID,
				   size, -EINVAL);
	return 0;
}

/* The CPUs */

struct cpu_check {
	u32 vendor;
	/* The first objection, with the CPU that has it. */
	atomic_t reason;
	u32 cpu;
	u64 detail;
	atomic_t enabled_vmx;
};

static void object(struct cpu_check *check, u32 reason, u64 detail)
{
	if (atomic_cmpxchg(&check->reason, 0, reason))
		return;
	check->cpu = smp_processor_id();
	check->detail = detail;
}

static void check_vmx(struct cpu_check *check)
{
	u64 control;

	/* Linux hides the feature when the firmware has turned it off. */
	if (!(cpuid_ecx(1) & BIT(5)))
		return object(check, GAOL_REASON_NO_VMX, 0);
	if (rdmsrl_safe(MSR_IA32_FEAT_CTL, &control))
		return object(check, GAOL_REASON_NO_VMX, 0);
	if (!(control & FEATURE_CONTROL_LOCKED)) {
		control |= FEATURE_CONTROL_LOCKED | FEATURE_CONTROL_VMX;
		if (wrmsrl_safe(MSR_IA32_FEAT_CTL, control))
			return object(check, GAOL_REASON_VMX_LOCKED_OFF, 0);
		atomic_inc(&check->enabled_vmx);
	}
	if (!(control & FEATURE_CONTROL_VMX))
		return object(check, GAOL_REASON_VMX_LOCKED_OFF, 0);
	if (__read_cr4() & X86_CR4_VMXE)
		object(check, GAOL_REASON_VMX_IN_USE, smp_processor_id());
}

static void check_svm(struct cpu_check *check)
{
	u64 value;

	if (cpuid_eax(0x80000000) < 0x8000000a ||
	    !(cpuid_ecx(0x80000001) & BIT(2)))
		return object(check, GAOL_REASON_NO_VMX, 0);
	if (!rdmsrl_safe(MSR_VM_CR, &value) && (value & VM_CR_SVM_DISABLED))
		return object(check, GAOL_REASON_VMX_LOCKED_OFF, 0);
	if (rdmsrl_safe(MSR_EFER, &value) || (value & EFER_SVME))
		object(check, GAOL_REASON_VMX_IN_USE, smp_processor_id());
}

static void check_cpu(void *argument)
{
	struct cpu_check *check = argument;
	struct desc_ptr gdt;
	unsigned long task;

	if (check->vendor == GAOL_VENDOR_VMX)
		check_vmx(check);
	else
		check_svm(check);
	native_store_gdt(&gdt);
	store_tr(task);
	/* The descriptor of the TSS takes 16 bytes. */
	if (gdt.size >= GAOL_HANDOVER_GDT_BYTES || task + 15 > gdt.size)
		object(check, GAOL_REASON_LINUX_STATE, gdt.size);
}

/* Called with cpus_read_lock held, so that the answer stays true. */
int gaol_check_cpus(struct launch *launch)
{
	struct gaol_outcome *outcome = &launch->request->outcome;
	struct cpu_check check = { .vendor = launch->image->vendor };
	unsigned int cpu;

	if (num_present_cpus() > GAOL_MAX_CPUS)
		return gaol_refuse(outcome, GAOL_REASON_TOO_MANY_CPUS,
				   num_present_cpus(), -E2BIG);
	for (cpu = 0; cpu < num_present_cpus(); cpu++) {
		if (cpu_online(cpu))
			continue;
		outcome->cpu = cpu;
		return gaol_refuse(outcome, GAOL_REASON_CPU_OFFLINE, cpu,
				   -EBUSY);
	}
	launch->cpu_count = num_present_cpus();
	on_each_cpu(check_cpu, &check, 1);
	if (atomic_read(&check.enabled_vmx))
		pr_notice("the firmware had left VMX open: enabled and locked it on %d CPUs\n",
			  atomic_read(&check.enabled_vmx));
	if (atomic_read(&check.reason)) {
		outcome->cpu = check.cpu;
		return gaol_refuse(outcome, atomic_read(&check.reason),
				   check.detail, -ENODEV);
	}
	return 0;
}
