/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What SKSM's Rust code needs of mm's macros and static inlines. Every
 * function here wraps one of them, or a fixed loop around one; policy lives
 * in Rust. bindgen reads this file.
 */
#ifndef _MM_SKSM_GLUE_H
#define _MM_SKSM_GLUE_H

#include <linux/kobject.h>
#include <linux/ksm.h>
#include <linux/llist.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/pagevec.h>
#include <linux/pagewalk.h>
#include <linux/random.h>
#include <linux/rhashtable.h>
#include <linux/rmap.h>
#include <linux/swap.h>
#include <linux/sysfs.h>
#include <linux/vmstat.h>
#include <linux/xxhash.h>

/*
 * What two pages must agree in before their bytes are compared: all up to nid.
 * The rest is padding that nodes put to use.
 */
struct sksm_key {
	u64 checksum;
	u64 domain;
	u8 kind;
	u8 full; /* whether the checksum is of all bytes; of a sample otherwise */
	s16 nid;
	u32 pending;
};

/* The start of every node: what the index sees of it. */
struct sksm_link {
	struct rhlist_head head;
	struct sksm_key key;
};

/* Index */
int sksm_index_init(struct rhltable *table);
int sksm_index_insert(struct rhltable *table, struct sksm_link *link);
int sksm_index_remove(struct rhltable *table, struct sksm_link *link);
struct sksm_link *sksm_index_lookup(struct rhltable *table, const struct sksm_key *key);
struct sksm_link *sksm_index_next(struct sksm_link *link);
void sksm_index_walk_enter(struct rhltable *table, struct rhashtable_iter *iter);
void sksm_rcu_read_lock(void);
void sksm_rcu_read_unlock(void);

/* What sksm_folio_state() tells. */
#define SKSM_FOLIO_ANON		0x01
#define SKSM_FOLIO_KSM		0x02
#define SKSM_FOLIO_LARGE	0x04
#define SKSM_FOLIO_ZONE_DEVICE	0x08
#define SKSM_FOLIO_HWPOISON	0x10
#define SKSM_FOLIO_SWAPCACHE	0x20

/* Folios */
bool sksm_folio_try_get(struct folio *folio);
void sksm_folio_get(struct folio *folio);
void sksm_folio_put(struct folio *folio);
void sksm_folios_put(struct folio_batch *folios);
bool sksm_folio_trylock(struct folio *folio);
void sksm_folio_lock(struct folio *folio);
unsigned int sksm_folio_state(struct folio *folio);
bool sksm_folio_maybe_dma_pinned(struct folio *folio);
void sksm_folio_mark_dirty(struct folio *folio);
bool sksm_folio_mapped(struct folio *folio);
int sksm_folio_mapcount(struct folio *folio);
int sksm_folio_other_refs(struct folio *folio);
bool sksm_folio_ref_freeze(struct folio *folio, int count);
void sksm_folio_ref_unfreeze(struct folio *folio, int count);
int sksm_folio_nid(struct folio *folio);
void *sksm_folio_mapping(struct folio *folio);
void sksm_folio_set_mapping(struct folio *folio, void *mapping);
unsigned long sksm_folio_index(struct folio *folio);
void sksm_folio_set_index(struct folio *folio, unsigned long index);
bool sksm_folio_share(struct folio *folio);
int sksm_folio_split(struct folio *folio);
void *sksm_folio_map(struct folio *folio);
void sksm_folio_unmap(void *addr);
void sksm_folio_add_rmap(struct folio *folio, struct vm_area_struct *vma, unsigned long addr);
void sksm_folio_remove_rmap(struct folio *folio, struct vm_area_struct *vma);

/* Page tables */
struct folio *sksm_pmd_get_folio(struct vm_area_struct *vma, pmd_t *pmd, unsigned long addr);
pte_t *sksm_pte_lock(struct mm_struct *mm, pmd_t *pmd, unsigned long addr, spinlock_t **ptl);
void sksm_pte_unlock(pte_t *pte, spinlock_t *ptl);
struct folio *sksm_pte_next_folio(struct vm_area_struct *vma, unsigned long start, pte_t *first,
				  unsigned long *slot, unsigned long end);
bool sksm_pte_clear_if(struct vm_area_struct *vma, unsigned long addr, pte_t *ptep,
		       struct folio *folio, pte_t *old);
void sksm_pte_set(struct mm_struct *mm, unsigned long addr, pte_t *ptep, pte_t pte);
bool sksm_pte_write(pte_t pte);
bool sksm_pte_dirty(pte_t pte);
pte_t sksm_pte_clean_readonly(pte_t pte);
pte_t sksm_pte_for_folio(struct folio *folio, struct vm_area_struct *vma, pte_t old);
pte_t sksm_pte_for_zero(struct vm_area_struct *vma, pte_t old);
void sksm_flush_tlb(struct vm_area_struct *vma, unsigned long start, unsigned long end);
bool sksm_tlb_flush_pending(struct mm_struct *mm);
void sksm_smp_mb(void);
void sksm_notifier_start(struct mmu_notifier_range *range, struct mm_struct *mm,
			 unsigned long start, unsigned long end);
void sksm_notifier_end(struct mmu_notifier_range *range);
void sksm_account_zero_page(struct mm_struct *mm);

/* Reverse mapping */
struct anon_vma *sksm_anon_vma_get(struct anon_vma *anon_vma);
void sksm_anon_vma_put(struct anon_vma *anon_vma);
bool sksm_anon_vma_trylock(struct anon_vma *anon_vma);
void sksm_anon_vma_lock(struct anon_vma *anon_vma);
void sksm_anon_vma_unlock(struct anon_vma *anon_vma);
struct anon_vma_chain *sksm_anon_vma_first(struct anon_vma *anon_vma, unsigned long pgoff);
unsigned long sksm_vma_address(struct vm_area_struct *vma, unsigned long pgoff);
unsigned long sksm_vma_pgoff(struct vm_area_struct *vma, unsigned long addr);
bool sksm_mapped_at(struct folio *folio, struct vm_area_struct *vma, unsigned long addr);
void sksm_collect_procs(struct folio *folio, struct vm_area_struct *vma, unsigned long addr,
			struct list_head *to_kill, int force_early);

/* Processes */
bool sksm_mm_owner(struct mm_struct *mm, u32 *uid, u32 *user_ns);
u64 sksm_mm_cgroup(struct mm_struct *mm);
bool sksm_mmap_lock_is_contended(struct mm_struct *mm);
bool sksm_fatal_signal_pending(void);
void sksm_cond_resched(void);

/* Observability */
void sksm_count(enum vm_event_item event, unsigned long pages);
void sksm_trace_call(struct mm_struct *mm, unsigned long scanned, unsigned long merged,
		     unsigned long published, unsigned long busy);
void sksm_trace_merge(struct mm_struct *mm, unsigned long addr, struct folio *folio);
void sksm_trace_publish(struct mm_struct *mm, unsigned long addr, struct folio *folio);
void sksm_trace_withdraw(struct mm_struct *mm, unsigned long addr, struct folio *folio);
void sksm_trace_busy(struct mm_struct *mm, unsigned long addr);

/* Deferred release of nodes: sksm_release() runs on a workqueue. */
void sksm_schedule_release(void);
void sksm_flush_release(void);
void sksm_release(struct work_struct *work);
int sksm_init(void);

#endif /* _MM_SKSM_GLUE_H */
