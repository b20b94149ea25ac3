/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Synchronous kernel samepage merging: what the rest of mm calls.
 * The code is in mm/sksm/, in Rust.
 */
#ifndef _LINUX_SKSM_H
#define _LINUX_SKSM_H

#include <linux/mm_types.h>
#include <linux/page-flags.h>

struct list_head;
struct rmap_walk_control;

/*
 * What a memory cgroup says about merging, in memory.merge_domain: nothing, or
 * which pages of its processes and those of its descendants may meet.
 */
enum sksm_mark {
	SKSM_INHERIT,
	SKSM_NONE,
	SKSM_USER,
	SKSM_ALL,
};

#ifdef CONFIG_SKSM

/* The state of one call, on its stack. */
struct sksm_call {
	unsigned long state[15];
};

/*
 * One system call that gives the advice, for any number of ranges of mm.
 * Process context, mmap_lock not needed. 0, or -EAGAIN: no memory.
 */
int sksm_call_begin(struct sksm_call *call, struct mm_struct *mm);

/*
 * Where in a range, which is not empty, to begin; what is before that comes
 * last. Does not sleep.
 */
unsigned long sksm_merge_from(unsigned long start, unsigned long end);

/*
 * Merges pages of one VMA, with mmap_lock held for read or, as vma_lock says, the
 * lock of this VMA. When others wait for the lock, or may do so, it ends early;
 * *start says where. 0, -EINTR, or -EAGAIN.
 */
int sksm_merge_vma(struct sksm_call *call, struct vm_area_struct *vma,
		   unsigned long *start, unsigned long end, bool vma_lock);

/* -EAGAIN if memory for some page was missing, which was left then; or 0. */
int sksm_call_end(struct sksm_call *call);

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

/*
 * A mapping of a merged folio has been removed for good. Migration removes
 * mappings for a while, and does not count. After folio_remove_rmap_pte(), page
 * table locked, perhaps within sksm_rmap_walk(). Somebody keeps the folio: the
 * caller has the mapping's reference still or, if a migration entry went,
 * the folio is locked.
 */
void sksm_unmapped(struct folio *folio, struct vm_area_struct *vma);

/* The same, for a mapping that became a swap entry. */
void sksm_swapped(struct folio *folio, struct vm_area_struct *vma);

extern bool sksm_any_asleep;
void __sksm_folio_wake(struct folio *folio);
bool __sksm_slot_asleep(swp_entry_t slot);
void __sksm_slot_freed(swp_entry_t slot);

/*
 * A merged folio leaves memory, and its swap slot has its bytes: what SKSM knows
 * of it sleeps under the slot. Folio locked, not mapped, and without references
 * or never to be used again. Any context.
 */
void sksm_folio_sleep(struct folio *folio, swp_entry_t slot);

/*
 * A folio of the swap cache that was never mapped. If a merged page sleeps
 * under its slot, it becomes that page. Folio locked; may sleep.
 */
static inline void sksm_folio_wake(struct folio *folio)
{
	if (unlikely(READ_ONCE(sksm_any_asleep)))
		__sksm_folio_wake(folio);
}

/* A swap entry became a mapping of a merged folio. As sksm_unmapped(). */
void sksm_swapped_in(struct folio *folio, struct vm_area_struct *vma);

/* Whether a merged page sleeps under a slot that is in use. Any context. */
static inline bool sksm_slot_asleep(swp_entry_t slot)
{
	return unlikely(READ_ONCE(sksm_any_asleep)) && __sksm_slot_asleep(slot);
}

/* Neither swap entry nor swap cache has the slot any more. Any context. */
static inline void sksm_slot_freed(swp_entry_t slot)
{
	if (unlikely(READ_ONCE(sksm_any_asleep)))
		__sksm_slot_freed(slot);
}

/* KSM's entry points, for folios that are SKSM's; the folio is locked. */
void sksm_rmap_walk(struct folio *folio, struct rmap_walk_control *rwc);
void sksm_migrate(struct folio *newfolio, struct folio *folio);
void sksm_collect_mappers(const struct folio *folio, struct list_head *to_kill,
			  int force_early);

/*
 * A merged folio has failed. True if a new page with the bytes of another copy
 * has taken its place for all who mapped it. Folio locked; sleeps.
 */
bool sksm_folio_rescue(struct folio *folio);

/* A new mm, which may be a copy of its parent's. */
static inline void sksm_init_mm(struct mm_struct *mm)
{
	atomic_long_set(&mm->sksm_merged, 0);
	atomic_long_set(&mm->sksm_published, 0);
	atomic_long_set(&mm->sksm_swapped, 0);
}

/* What a merged page and each mapping that was redirected to it cost. */
#define SKSM_NODE_BYTES		96
#define SKSM_PLACE_BYTES	16

#else /* !CONFIG_SKSM */

struct sksm_call {
};

static inline int sksm_call_begin(struct sksm_call *call, struct mm_struct *mm)
{
	return 0;
}

static inline unsigned long sksm_merge_from(unsigned long start, unsigned long end)
{
	return start;
}

static inline int sksm_merge_vma(struct sksm_call *call, struct vm_area_struct *vma,
				 unsigned long *start, unsigned long end, bool vma_lock)
{
	*start = end;
	return 0;
}

static inline int sksm_call_end(struct sksm_call *call)
{
	return 0;
}

static inline void sksm_folio_free(struct folio *folio)
{
}

static inline bool sksm_withdraw(struct folio *folio, struct vm_area_struct *vma,
				 unsigned long addr)
{
	return false;
}

static inline void sksm_unmapped(struct folio *folio, struct vm_area_struct *vma)
{
}

static inline void sksm_swapped(struct folio *folio, struct vm_area_struct *vma)
{
}

static inline void sksm_folio_sleep(struct folio *folio, swp_entry_t slot)
{
}

static inline void sksm_folio_wake(struct folio *folio)
{
}

static inline void sksm_swapped_in(struct folio *folio, struct vm_area_struct *vma)
{
}

static inline bool sksm_slot_asleep(swp_entry_t slot)
{
	return false;
}

static inline void sksm_slot_freed(swp_entry_t slot)
{
}

static inline void sksm_rmap_walk(struct folio *folio, struct rmap_walk_control *rwc)
{
}

static inline void sksm_migrate(struct folio *newfolio, struct folio *folio)
{
}

static inline void sksm_collect_mappers(const struct folio *folio, struct list_head *to_kill,
					int force_early)
{
}

static inline bool sksm_folio_rescue(struct folio *folio)
{
	return false;
}

static inline void sksm_init_mm(struct mm_struct *mm)
{
}

#endif /* CONFIG_SKSM */

#endif /* _LINUX_SKSM_H */
