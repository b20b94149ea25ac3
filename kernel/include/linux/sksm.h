/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Synchronous kernel samepage merging: what the rest of mm calls.
 * The code is in mm/sksm/, in Rust.
 */
#ifndef _LINUX_SKSM_H
#define _LINUX_SKSM_H

#include <linux/page-flags.h>

struct folio;
struct list_head;
struct mm_struct;
struct rmap_walk_control;
struct vm_area_struct;

#ifdef CONFIG_SKSM

/*
 * One MADV_MERGE call; mmap_lock is held for read while VMAs are merged. When
 * others wait for the lock, sksm_merge_vma() ends early; *start says where.
 */
struct sksm_call;
struct sksm_call *sksm_call_begin(struct mm_struct *mm);
int sksm_merge_vma(struct sksm_call *call, struct vm_area_struct *vma,
		   unsigned long *start, unsigned long end);
void sksm_call_end(struct sksm_call *call);

/*
 * The last reference to a merged folio has gone, or memory failure unmapped it
 * for good (folio locked). Any context.
 */
void sksm_folio_free(struct folio *folio);

/*
 * A write fault on a merged folio. True if the faulting mapping was the only
 * user: the folio is an ordinary exclusive one again. Page table locked.
 */
bool sksm_withdraw(struct folio *folio, struct vm_area_struct *vma,
		   unsigned long addr);

/* KSM's entry points, for folios that are SKSM's; the folio is locked. */
void sksm_rmap_walk(struct folio *folio, struct rmap_walk_control *rwc);
void sksm_migrate(struct folio *newfolio, struct folio *folio);
void sksm_collect_mappers(struct folio *folio, struct list_head *to_kill,
			  int force_early);

#else /* !CONFIG_SKSM */

static inline void sksm_folio_free(struct folio *folio)
{
}

static inline bool sksm_withdraw(struct folio *folio, struct vm_area_struct *vma,
				 unsigned long addr)
{
	return false;
}

static inline void sksm_rmap_walk(struct folio *folio, struct rmap_walk_control *rwc)
{
}

static inline void sksm_migrate(struct folio *newfolio, struct folio *folio)
{
}

static inline void sksm_collect_mappers(struct folio *folio, struct list_head *to_kill,
					int force_early)
{
}

#endif /* CONFIG_SKSM */

#endif /* _LINUX_SKSM_H */
