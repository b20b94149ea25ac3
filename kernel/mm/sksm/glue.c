// SPDX-License-Identifier: GPL-2.0-only
/*
 * mm's macros and static inlines for SKSM's Rust code, see glue.h. Each
 * function has the context rules of what it wraps.
 */
#include <linux/cred.h>
#include <linux/hugetlb.h>
#include <linux/init.h>
#include <linux/memcontrol.h>
#include <linux/nsproxy.h>
#include <linux/oom.h>
#include <linux/pid_namespace.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/user_namespace.h>
#include <linux/workqueue.h>

#include <asm/tlbflush.h>

#define CREATE_TRACE_POINTS
#include <trace/events/sksm.h>

#include "../internal.h"
#include "glue.h"

/* Index */

/*
 * A node is in one of two tables, with the same link: in the index, or under its
 * swap slot. Who looks something up in one may come by what stands in the other.
 * A slot is odd. Where that is, what else stands in a table has a pointer or an
 * rcu_head.
 */
static bool sksm_is_asleep(const void *obj)
{
	return READ_ONCE(((const struct sksm_sleeper *)obj)->slot) & 1;
}

static struct rhashtable sksm_index;

/* The hash of the content is as good as random, and secret. */
static u32 sksm_key_hash(const void *data, u32 len, u32 seed)
{
	const struct sksm_key *key = data;

	return (u32)key->hash ^ seed;
}

/*
 * As memcmp(), inline; and a search that came by a node that sleeps, see below,
 * does not take it for one of this table.
 */
static int sksm_key_cmp(struct rhashtable_compare_arg *arg, const void *obj)
{
	const struct sksm_key *a = arg->key;
	const struct sksm_key *b = &((const struct sksm_link *)obj)->key;

	return a->hash != b->hash || a->domain != b->domain || sksm_is_asleep(obj);
}

static const struct rhashtable_params sksm_index_params = {
	.head_offset = offsetof(struct sksm_link, head),
	.key_offset = offsetof(struct sksm_link, key),
	.key_len = sizeof(struct sksm_key),
	.hashfn = sksm_key_hash,
	.obj_cmpfn = sksm_key_cmp,
	/* 32 KiB: room for a few libraries before the table has to grow. */
	.min_size = 4096,
	.automatic_shrinking = true,
	SKSM_GROWN_BY_WORKER
};

/* Nodes by swap slot. */
static struct rhashtable sksm_asleep;

/* Set for good when the first node falls asleep. */
bool sksm_any_asleep __read_mostly;

static int sksm_slot_cmp(struct rhashtable_compare_arg *arg, const void *obj)
{
	const unsigned long *slot = arg->key;

	return *slot != READ_ONCE(((const struct sksm_sleeper *)obj)->slot);
}

static const struct rhashtable_params sksm_asleep_params = {
	.head_offset = offsetof(struct sksm_sleeper, link.head),
	.key_offset = offsetof(struct sksm_sleeper, slot),
	.key_len = sizeof_field(struct sksm_sleeper, slot),
	.obj_cmpfn = sksm_slot_cmp,
	.automatic_shrinking = true,
	SKSM_GROWN_BY_WORKER
};

/* Guard what is published under the hashes of some samples each. */
static spinlock_t sksm_shards[SKSM_SHARDS];

int sksm_index_init(void)
{
	unsigned int shard;

	for (shard = 0; shard < SKSM_SHARDS; shard++)
		spin_lock_init(&sksm_shards[shard]);
	return rhashtable_init(&sksm_asleep, &sksm_asleep_params) ?:
	       rhashtable_init(&sksm_index, &sksm_index_params);
}

struct sksm_link *sksm_index_lookup(const struct sksm_key *key)
{
	/* Also for those who have a shard's lock only. */
	return rhashtable_lookup_fast(&sksm_index, key, sksm_index_params);
}

int sksm_index_insert(struct sksm_link *link)
{
	return rhashtable_insert_fast(&sksm_index, &link->head, sksm_index_params);
}

int sksm_index_replace(struct sksm_link *old, struct sksm_link *new)
{
	return rhashtable_replace_fast(&sksm_index, &old->head, &new->head, sksm_index_params);
}

int sksm_index_remove(struct sksm_link *link)
{
	return rhashtable_remove_fast(&sksm_index, &link->head, sksm_index_params);
}

void sksm_crowd_free(struct sksm_crowd *crowd)
{
	kfree_rcu(crowd, rcu);
}

int sksm_asleep_insert(struct sksm_sleeper *sleeper)
{
	if (!READ_ONCE(sksm_any_asleep))
		WRITE_ONCE(sksm_any_asleep, true);
	return rhashtable_lookup_insert_fast(&sksm_asleep, &sleeper->link.head,
					     sksm_asleep_params);
}

struct sksm_sleeper *sksm_asleep_lookup(unsigned long slot)
{
	return rhashtable_lookup_fast(&sksm_asleep, &slot, sksm_asleep_params);
}

/* Exact up to one; the slot is in use. */
int sksm_slot_users(unsigned long entry)
{
	int users;

	/* For those who do not hold the slot's lock. */
	rcu_read_lock();
	users = __swap_count((swp_entry_t){ entry });
	rcu_read_unlock();
	return users;
}

void sksm_asleep_remove(struct sksm_sleeper *sleeper)
{
	rhashtable_remove_fast(&sksm_asleep, &sleeper->link.head, sksm_asleep_params);
}

unsigned long sksm_shard_lock(unsigned int shard)
{
	unsigned long flags;

	spin_lock_irqsave(&sksm_shards[shard], flags);
	return flags;
}

void sksm_shard_unlock(unsigned int shard, unsigned long flags)
{
	spin_unlock_irqrestore(&sksm_shards[shard], flags);
}

/* Folios */

bool sksm_folio_try_get(struct folio *folio)
{
	return folio_try_get(folio);
}

void sksm_folio_get(struct folio *folio)
{
	folio_get(folio);
}

void sksm_folio_put(struct folio *folio)
{
	folio_put(folio);
}

void sksm_folio_batch_init(struct folio_batch *folios)
{
	folio_batch_init(folios);
}

/* Empties the batch when it is full. */
void sksm_folio_batch_put(struct folio_batch *folios, struct folio *folio)
{
	if (!folio_batch_add(folios, folio))
		folios_put(folios);
}

void sksm_folio_batch_release(struct folio_batch *folios)
{
	if (folio_batch_count(folios))
		folios_put(folios);
}

bool sksm_folio_trylock(struct folio *folio)
{
	return folio_trylock(folio);
}

int sksm_folio_lock_killable(struct folio *folio)
{
	return folio_lock_killable(folio);
}

/* Whether memory tags belong to the bytes. */
static bool sksm_folio_is_tagged(struct folio *folio)
{
#ifdef CONFIG_ARM64_MTE
	return page_mte_tagged(&folio->page);
#else
	return false;
#endif
}

/* Neither device memory, nor poisoned, nor tagged. */
bool sksm_folio_is_plain(struct folio *folio)
{
	return !folio_is_zone_device(folio) && !folio_contain_hwpoisoned_page(folio) &&
	       !sksm_folio_is_tagged(folio);
}

/* Neither SKSM's nor KSM's. */
bool sksm_folio_is_unmerged_anon(struct folio *folio)
{
	return folio_test_anon(folio) && !folio_test_ksm(folio);
}

bool sksm_folio_is_large(struct folio *folio)
{
	return folio_test_large(folio);
}

bool sksm_folio_in_swapcache(struct folio *folio)
{
	return folio_test_swapcache(folio);
}

bool sksm_folio_maybe_dma_pinned(struct folio *folio)
{
	return folio_maybe_dma_pinned(folio);
}

void sksm_folio_mark_dirty(struct folio *folio)
{
	if (!folio_test_dirty(folio))
		folio_mark_dirty(folio);
}

bool sksm_folio_mapped(struct folio *folio)
{
	return folio_mapped(folio);
}

int sksm_folio_mapcount(struct folio *folio)
{
	return folio_mapcount(folio);
}

/* References of neither mappings nor the swap cache, of an anonymous folio. */
int sksm_folio_other_refs(struct folio *folio)
{
	return folio_ref_count(folio) - folio_expected_ref_count(folio);
}

bool sksm_folio_ref_freeze(struct folio *folio, int count)
{
	return folio_ref_freeze(folio, count);
}

void sksm_folio_ref_unfreeze(struct folio *folio, int count)
{
	folio_ref_unfreeze(folio, count);
}

int sksm_folio_nid(struct folio *folio)
{
	return folio_nid(folio);
}

unsigned long sksm_folio_mapping(struct folio *folio)
{
	/* Pairs with the release below: whoever sees a node sees it filled in. */
	return (unsigned long)smp_load_acquire(&folio->mapping);
}

void sksm_folio_set_mapping(struct folio *folio, unsigned long mapping)
{
	/*
	 * Who will run what is in this page has seen to the instruction cache
	 * for his own copy. So whoever maps it for that is to do so again.
	 */
	flush_dcache_folio(folio);
	/* Pairs with the acquire above. */
	smp_store_release(&folio->mapping, (struct address_space *)mapping);
}

unsigned long sksm_folio_index(struct folio *folio)
{
	return folio->index;
}

/* Its swap entry, if the folio is in the swap cache. */
unsigned long sksm_folio_slot(struct folio *folio)
{
	return folio->swap.val;
}

bool sksm_folio_uptodate(struct folio *folio)
{
	return folio_test_uptodate(folio);
}

void sksm_folio_set_index(struct folio *folio, unsigned long index)
{
	folio->index = index;
}

bool sksm_folio_is_exclusive(struct folio *folio)
{
	return PageAnonExclusive(&folio->page);
}

/* Ends exclusivity if there is any; false when the page may be pinned. */
bool sksm_folio_share(struct folio *folio)
{
	return !PageAnonExclusive(&folio->page) ||
	       !folio_try_share_anon_rmap_pte(folio, &folio->page);
}

int sksm_folio_split(struct folio *folio)
{
	return split_folio(folio);
}

void *sksm_folio_map(struct folio *folio)
{
	return kmap_local_folio(folio, 0);
}

void sksm_folio_unmap(void *addr)
{
	kunmap_local(addr);
}

void sksm_folio_add_rmap(struct folio *folio, struct vm_area_struct *vma, unsigned long addr)
{
	folio_add_anon_rmap_pte(folio, &folio->page, vma, addr, RMAP_NONE);
}

void sksm_folio_remove_rmap(struct folio *folio, struct vm_area_struct *vma)
{
	folio_remove_rmap_pte(folio, &folio->page, vma);
}

/* Page tables */

/*
 * The entry that the page table of addr hangs on, as far as *next at most, or
 * NULL if there are no tables up to *next. In a VMA that KSM would take.
 */
pmd_t *sksm_find_pmd(struct mm_struct *mm, unsigned long addr, unsigned long end,
		     unsigned long *next)
{
	pmd_t *pmd = mm_find_pmd(mm, addr);

	end = pgd_addr_end(addr, end);
	end = p4d_addr_end(addr, end);
	end = pud_addr_end(addr, end);
	*next = pmd ? pmd_addr_end(addr, end) : end;
	return pmd && !pmd_none(pmdp_get_lockless(pmd)) ? pmd : NULL;
}

/* The anonymous folio that a huge PMD maps, with a reference, or NULL. */
struct folio *sksm_pmd_get_folio(struct vm_area_struct *vma, pmd_t *pmd, unsigned long addr)
{
	struct folio *folio = NULL;
	spinlock_t *ptl; /* the lock of the table that holds pmd */
	struct page *page;

	ptl = pmd_trans_huge_lock(pmd, vma);
	if (!ptl)
		return NULL;
	if (pmd_present(*pmd)) {
		page = vm_normal_page_pmd(vma, addr, *pmd);
		if (page && PageAnon(page)) {
			folio = page_folio(page);
			folio_get(folio);
		}
	}
	spin_unlock(ptl);
	return folio;
}

pte_t *sksm_pte_lock(struct mm_struct *mm, pmd_t *pmd, unsigned long addr, spinlock_t **ptl)
{
	return pte_offset_map_lock(mm, pmd, addr, ptl);
}

void sksm_pte_unlock(pte_t *pte, spinlock_t *ptl)
{
	pte_unmap_unlock(pte, ptl);
}

/*
 * The first of the entries *slot .. end - 1 that maps an anonymous folio which
 * is not merged: returns the folio, and sets *slot. The entries begin at first,
 * for address start.
 */
struct folio *sksm_pte_next_folio(struct vm_area_struct *vma, unsigned long start, pte_t *first,
				  unsigned long *slot, unsigned long end)
{
	for (; *slot < end; ++*slot) {
		pte_t pte = ptep_get(first + *slot);
		struct folio *folio;

		if (!pte_present(pte))
			continue;
		folio = vm_normal_folio(vma, start + *slot * PAGE_SIZE, pte);
		if (folio && sksm_folio_is_unmerged_anon(folio))
			return folio;
	}
	return NULL;
}

/* Clears the entry if it maps the one page of the folio; the entry in *old. */
bool sksm_pte_clear_if(struct vm_area_struct *vma, unsigned long addr, pte_t *ptep,
		       struct folio *folio, pte_t *old)
{
	pte_t pte = ptep_get(ptep);

	if (!pte_present(pte) || pte_pfn(pte) != folio_pfn(folio))
		return false;
	flush_cache_page(vma, addr, pte_pfn(pte));
	*old = ptep_get_and_clear(vma->vm_mm, addr, ptep);
	return true;
}

void sksm_pte_set(struct mm_struct *mm, unsigned long addr, pte_t *ptep, pte_t pte)
{
	set_pte_at(mm, addr, ptep, pte);
}

bool sksm_pte_write(pte_t pte)
{
	return pte_write(pte);
}

bool sksm_pte_dirty(pte_t pte)
{
	return pte_dirty(pte);
}

pte_t sksm_pte_clean_readonly(pte_t pte)
{
	return pte_wrprotect(pte_mkclean(pte));
}

/* The bits that belong to the mapping and not to the page. */
static pte_t sksm_pte_carry(struct vm_area_struct *vma, pte_t pte, pte_t old)
{
	/* pte_mkdirty() sets this one too. */
	pte = pte_soft_dirty(old) ? pte_mksoft_dirty(pte) : pte_clear_soft_dirty(pte);
	if (pte_uffd(old))
		pte = sksm_pte_arm(vma, pte_mkuffd(pte));
	return pte;
}

pte_t sksm_pte_for_folio(struct folio *folio, struct vm_area_struct *vma, pte_t old)
{
	pte_t pte = mk_pte(&folio->page, vma->vm_page_prot);

	return sksm_pte_carry(vma, pte_mkdirty(pte_wrprotect(pte)), old);
}

pte_t sksm_pte_for_zero(struct vm_area_struct *vma, pte_t old)
{
	pte_t pte = pfn_pte(zero_pfn(0), vma->vm_page_prot);

	/* The dirty bit tells zero pages of KSM's kind, see is_ksm_zero_pte(). */
	return sksm_pte_carry(vma, pte_mkdirty(pte_mkspecial(pte)), old);
}

/* Marks a plain zero page as one of KSM's kind and counts it; false if it is none. */
bool sksm_pte_adopt_zero(struct vm_area_struct *vma, unsigned long addr, pte_t *ptep)
{
	pte_t pte = ptep_get(ptep);

	if (!pte_present(pte) || !is_zero_pfn(pte_pfn(pte)) || pte_dirty(pte))
		return false;
	set_pte_at(vma->vm_mm, addr, ptep, sksm_pte_carry(vma, pte_mkdirty(pte), pte));
	ksm_map_zero_page(vma->vm_mm);
	return true;
}

/*
 * A new folio, locked, with the bytes of copy, and with the mapping and the
 * charge of old, which is locked. NULL if there is no memory, or copy is bad.
 */
struct folio *sksm_folio_replacement(struct folio *old, struct folio *copy)
{
	struct folio *new;

	new = folio_alloc(GFP_HIGHUSER_MOVABLE | __GFP_RETRY_MAYFAIL | __GFP_NOWARN, 0);
	if (!new)
		return NULL;
	if (copy_mc_highpage(&new->page, &copy->page)) {
		folio_put(new);
		return NULL;
	}
	__folio_set_locked(new);
	__folio_set_swapbacked(new);
	__folio_mark_uptodate(new);
	new->mapping = old->mapping;
	mem_cgroup_replace_folio(old, new);
	return new;
}

/* Maps new in place of old, if that is mapped there. Both are locked. */
void sksm_folio_replace_at(struct folio *old, struct vm_area_struct *vma, unsigned long addr,
			   struct folio *new)
{
	DEFINE_FOLIO_VMA_WALK(pvmw, old, vma, addr, PVMW_SYNC);
	struct mmu_notifier_range range;

	sksm_notifier_start(vma->vm_mm, &range, addr, addr + PAGE_SIZE);
	while (page_vma_mapped_walk(&pvmw)) {
		pte_t pte = ptep_clear_flush(vma, pvmw.address, pvmw.pte);

		folio_get(new);
		folio_add_anon_rmap_pte(new, &new->page, vma, pvmw.address, RMAP_NONE);
		set_pte_at(vma->vm_mm, pvmw.address, pvmw.pte,
			   sksm_pte_for_folio(new, vma, pte));
		folio_remove_rmap_pte(old, &old->page, vma);
		if (vma->vm_flags & VM_LOCKED)
			mlock_drain_local();
		folio_put(old);
	}
	sksm_notifier_end(&range);
}

void sksm_flush_tlb(struct vm_area_struct *vma, unsigned long start, unsigned long end)
{
	flush_tlb_range(vma, start, end);
}

bool sksm_tlb_flush_pending(struct mm_struct *mm)
{
	return mm_tlb_flush_pending(mm);
}

void sksm_notifier_start(struct mm_struct *mm, struct mmu_notifier_range *range,
			 unsigned long start, unsigned long end)
{
	mmu_notifier_range_init(range, MMU_NOTIFY_CLEAR, 0, mm, start, end);
	mmu_notifier_invalidate_range_start(range);
}

void sksm_notifier_end(struct mmu_notifier_range *range)
{
	mmu_notifier_invalidate_range_end(range);
}

/* An anonymous page of this process became a zero page that KSM counts. */
void sksm_account_zero_page(struct mm_struct *mm)
{
	ksm_map_zero_page(mm);
	dec_mm_counter(mm, MM_ANONPAGES);
}

/* Reverse mapping */

struct anon_vma *sksm_anon_vma_get(struct anon_vma *anon_vma)
{
	get_anon_vma(anon_vma);
	return anon_vma;
}

void sksm_anon_vma_put(struct anon_vma *anon_vma)
{
	put_anon_vma(anon_vma);
}

bool sksm_anon_vma_trylock(struct anon_vma *anon_vma)
{
	return anon_vma_trylock_read(anon_vma);
}

void sksm_anon_vma_lock(struct anon_vma *anon_vma)
{
	anon_vma_lock_read(anon_vma);
}

void sksm_anon_vma_unlock(struct anon_vma *anon_vma)
{
	anon_vma_unlock_read(anon_vma);
}

struct anon_vma_chain *sksm_anon_vma_first(struct anon_vma *anon_vma, unsigned long pgoff)
{
	return anon_rmap_tree_iter_first(anon_vma, pgoff, pgoff);
}

struct anon_vma_chain *sksm_anon_vma_next(struct anon_vma_chain *chain, unsigned long pgoff)
{
	return anon_rmap_tree_iter_next(chain, pgoff, pgoff);
}

unsigned long sksm_vma_address(struct vm_area_struct *vma, unsigned long pgoff)
{
	return vma_anon_address(vma, pgoff, 1);
}

unsigned long sksm_vma_pgoff(struct vm_area_struct *vma, unsigned long addr)
{
	return linear_anon_page_index(vma, addr);
}

bool sksm_mapped_at(struct folio *folio, struct vm_area_struct *vma, unsigned long addr)
{
	DEFINE_FOLIO_VMA_WALK(pvmw, folio, vma, addr, PVMW_SYNC);

	if (!page_vma_mapped_walk(&pvmw))
		return false;
	page_vma_mapped_walk_done(&pvmw);
	return true;
}

/* Adds every process of this VMA's mm that wants to hear of a memory failure. */
void sksm_collect_procs(struct folio *folio, struct vm_area_struct *vma, unsigned long addr,
			struct list_head *to_kill, int force_early)
{
#ifdef CONFIG_MEMORY_FAILURE
	struct task_struct *tsk;

	rcu_read_lock();
	for_each_process(tsk) {
		struct task_struct *t = task_early_kill(tsk, force_early);

		if (t && t->mm == vma->vm_mm)
			add_to_kill_ksm(t, &folio->page, vma, to_kill, addr);
	}
	rcu_read_unlock();
#endif
}

/* VMAs */

bool sksm_vma_is_anonymous(struct vm_area_struct *vma)
{
	return vma_is_anonymous(vma);
}

unsigned long sksm_vma_flags(struct vm_area_struct *vma)
{
	return vma->vm_flags;
}

unsigned long sksm_vma_start(struct vm_area_struct *vma)
{
	return vma->vm_start;
}

unsigned long sksm_vma_end(struct vm_area_struct *vma)
{
	return vma->vm_end;
}

/* Processes */

static bool sksm_off __ro_after_init;

static int __init sksm_setup(char *value)
{
	if (!value || strcmp(value, "off"))
		return -EINVAL;
	sksm_off = true;
	return 0;
}
early_param("sksm", sksm_setup);

bool sksm_is_off(void)
{
	return sksm_off;
}

bool sksm_is_current_mm(struct mm_struct *mm)
{
	return mm == current->mm;
}

/* False when the process that owned the memory has gone. RCU read lock held. */
bool sksm_mm_owner(struct mm_struct *mm, struct sksm_owner *who)
{
	struct task_struct *owner = rcu_dereference(mm->owner);
	struct nsproxy *nsproxy;
	const struct cred *cred;

	if (!owner)
		return false;
	cred = __task_cred(owner);
	who->uid = __kuid_val(cred->uid);
	who->euid = __kuid_val(cred->euid);
	who->suid = __kuid_val(cred->suid);
	who->mm_user_ns = sksm_ns_id(&sksm_mm_user_ns(mm, owner)->ns);
	who->user_ns = sksm_ns_id(&cred->user_ns->ns);
	task_lock(owner);
	nsproxy = owner->nsproxy;
	if (nsproxy)
		who->cgroup_ns = sksm_ns_id(&nsproxy->cgroup_ns->ns);
	task_unlock(owner);
	return nsproxy;
}

bool sksm_mm_dumpable(struct mm_struct *mm)
{
	bool dumpable;

	rcu_read_lock();
	dumpable = sksm_task_dumpable(rcu_dereference(mm->owner), mm);
	rcu_read_unlock();
	return dumpable;
}

/* RCU read lock held; it keeps what is returned, and its ancestors. */
struct mem_cgroup *sksm_mm_memcg(struct mm_struct *mm)
{
	struct task_struct *owner = rcu_dereference(mm->owner);

	return owner && !mem_cgroup_disabled() ? mem_cgroup_from_task(owner) : NULL;
}

struct mem_cgroup *sksm_memcg_parent(struct mem_cgroup *memcg)
{
	return parent_mem_cgroup(memcg);
}

u64 sksm_memcg_serial(struct mem_cgroup *memcg)
{
	return memcg->css.serial_nr;
}

unsigned int sksm_memcg_mark(struct mem_cgroup *memcg)
{
	return READ_ONCE(memcg->merge_domain);
}

/*
 * The mm, with a reference, of the process with the lowest number from *nr on
 * that has one; *nr is then the next number.
 */
struct mm_struct *sksm_next_mm(int *nr)
{
	struct task_struct *task;
	struct mm_struct *mm = NULL;
	struct pid *pid;

	rcu_read_lock();
	while (!mm) {
		pid = find_ge_pid(*nr, &init_pid_ns);
		if (!pid)
			break;
		*nr = pid_nr(pid) + 1;
		task = pid_task(pid, PIDTYPE_TGID);
		if (!task || task->flags & PF_KTHREAD)
			continue;
		task = find_lock_task_mm(task);
		if (!task)
			continue;
		mm = task->mm;
		mmget(mm);
		task_unlock(task);
	}
	rcu_read_unlock();
	return mm;
}

int sksm_mmap_read_lock_killable(struct mm_struct *mm)
{
	return mmap_read_lock_killable(mm);
}

void sksm_mmap_read_unlock(struct mm_struct *mm)
{
	mmap_read_unlock(mm);
}

bool sksm_mmap_lock_is_contended(struct mm_struct *mm)
{
	return mmap_lock_is_contended(mm);
}

bool sksm_fatal_signal_pending(void)
{
	return fatal_signal_pending(current);
}

unsigned int sksm_this_cpu(void)
{
	return raw_smp_processor_id();
}

void sksm_cond_resched(void)
{
	cond_resched();
}

void sksm_drain_local_batches(void)
{
	lru_add_drain();
}

/* Counters */

static DEFINE_PER_CPU(long[SKSM_NR_STATS], sksm_stats);

void sksm_stat_add(unsigned int stat, long count)
{
	this_cpu_add(sksm_stats[stat], count);
}

long sksm_stat_read(unsigned int stat)
{
	long sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += READ_ONCE(per_cpu(sksm_stats[stat], cpu));
	return sum;
}

void sksm_mm_add_merged(struct mm_struct *mm, long mappings)
{
	atomic_long_add(mappings, &mm->sksm_merged);
}

void sksm_mm_add_published(struct mm_struct *mm, long pages)
{
	atomic_long_add(pages, &mm->sksm_published);
}

/* One less, unless there is none. */
bool sksm_mm_take_merged(struct mm_struct *mm)
{
	return atomic_long_dec_if_positive(&mm->sksm_merged) >= 0;
}

bool sksm_mm_take_published(struct mm_struct *mm)
{
	return atomic_long_dec_if_positive(&mm->sksm_published) >= 0;
}

void sksm_mm_add_swapped(struct mm_struct *mm, long mappings)
{
	atomic_long_add(mappings, &mm->sksm_swapped);
}

bool sksm_mm_take_swapped(struct mm_struct *mm)
{
	return atomic_long_dec_if_positive(&mm->sksm_swapped) >= 0;
}

/* Observability */

void sksm_count(enum vm_event_item event, unsigned long pages)
{
	count_vm_events(event, pages);
}

void sksm_trace_call(struct mm_struct *mm, unsigned long scanned, unsigned long merged,
		     unsigned long published, unsigned long busy)
{
	trace_sksm_call(mm, scanned, merged, published, busy);
}

/* No folio: the zero page. */
void sksm_trace_merge(struct mm_struct *mm, unsigned long addr, struct folio *folio)
{
	trace_sksm_merge(mm, addr, folio ? folio_pfn(folio) : zero_pfn(addr));
}

void sksm_trace_publish(struct mm_struct *mm, unsigned long addr, struct folio *folio)
{
	trace_sksm_publish(mm, addr, folio_pfn(folio));
}

void sksm_trace_withdraw(struct mm_struct *mm, unsigned long addr, struct folio *folio)
{
	trace_sksm_withdraw(mm, addr, folio_pfn(folio));
}

void sksm_trace_busy(struct mm_struct *mm, unsigned long addr)
{
	trace_sksm_busy(mm, addr);
}

/* Deferred release */

/* Nodes that were retired on a CPU, newest first, and the work item that frees them. */
struct sksm_retired {
	struct llist_head nodes;
	struct work_struct work;
};

static DEFINE_PER_CPU(struct sksm_retired, sksm_retired);

static void sksm_release_work(struct work_struct *work)
{
	struct sksm_retired *retired = container_of(work, struct sksm_retired, work);

	sksm_release(llist_del_all(&retired->nodes));
}

void sksm_release_init(void)
{
	int cpu;

	for_each_possible_cpu(cpu)
		INIT_WORK(&per_cpu(sksm_retired, cpu).work, sksm_release_work);
}

/* A CPU's list takes nodes from others, too: so this task may move meanwhile. */
void sksm_retire(struct llist_node *node)
{
	struct sksm_retired *retired = raw_cpu_ptr(&sksm_retired);

	if (llist_add(node, &retired->nodes))
		queue_work(system_dfl_wq, &retired->work);
}

subsys_initcall(sksm_init);
