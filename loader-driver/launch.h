/* SPDX-License-Identifier: GPL-2.0 */
/* A launch on its way, between the files that have a part in it. */
#ifndef GAOL_LAUNCH_H
#define GAOL_LAUNCH_H

#include "gaol.h"

struct launch {
	const struct gaol_image_header *image;
	struct gaol_enable_request *request;
	struct gaol_system_header *config;
	const struct file *holder;
	unsigned int cpu_count;

	struct gaol_memory *memory;
	void *mapping;
	struct gaol_launch_parameters *parameters;
	struct gaol_handover_page *pages;
	const struct gaol_system_public *public;
	size_t public_size;
	/* Pages of the boot page table in use. */
	unsigned int tables;
	/* By CPU: what gaol_enter returned. */
	long *results;
};

/* check.c */
int gaol_check_image(const struct gaol_image_header *header, u64 size,
		     struct gaol_outcome *outcome);
int gaol_check_config(const struct gaol_system_header *config, u64 size,
		      struct gaol_outcome *outcome);
int gaol_check_cpus(struct launch *launch);

/* layout.c */
int gaol_take_region(struct launch *launch);
void gaol_give_region_back(void *mapping, struct gaol_memory *memory);
int gaol_fill_region(struct launch *launch);

#endif /* GAOL_LAUNCH_H */
