//! Mistakes to plant in the engine. `build.rs` compiles a copy of it with all of them, each behind
//! a question; the tests ask for one at a time.

/// What a replacement says where the copy is to ask whether the mistake is made.
#[allow(dead_code, reason = "for build.rs")]
pub const PLANTED: &str = "{planted}";

/// Texts that stand in a file once each, and what stands there in the copy.
pub struct Mistake {
    pub name: &'static str,
    pub file: &'static str,
    pub edits: &'static [(&'static str, &'static str)],
}

const fn mistake(
    name: &'static str,
    file: &'static str,
    edits: &'static [(&'static str, &'static str)],
) -> Mistake {
    Mistake { name, file, edits }
}

pub const MISTAKES: &[Mistake] = &[
    // Withdrawing
    mistake(
        "withdraw ignores references",
        "node.rs",
        &[
            (
                "if !bindings::sksm_folio_ref_freeze(folio.as_ptr(), 2) {",
                "if !{planted} && !bindings::sksm_folio_ref_freeze(folio.as_ptr(), 2) {",
            ),
            (
                "            bindings::sksm_folio_ref_unfreeze(folio.as_ptr(), 2);",
                "            if !{planted} {
                bindings::sksm_folio_ref_unfreeze(folio.as_ptr(), 2);
            }",
            ),
        ],
    ),
    mistake(
        "withdraw compares references and does not freeze them",
        "node.rs",
        &[
            (
                "        let Some(merged) = locked.merged() else {
            return false;
        };
",
                "        if {planted} && folio.other_refs() != 1 {
            return false;
        }
        let Some(merged) = locked.merged() else {
            return false;
        };
",
            ),
            (
                "        let node = merged.node;
        // The mapping's",
                "        let node = merged.node;
        if {planted} {
            // SAFETY: None.
            unsafe {
                bindings::sksm_folio_set_index(folio.as_ptr(), vma.pgoff(addr));
                bindings::folio_move_anon_rmap(folio.as_ptr(), vma.as_ptr());
                node.leave_memory();
                Self::retire(NonNull::from(node));
            }
            stats::withdrawn();
            Process(vma.mm()).unmapped();
            return true;
        }
        // The mapping's",
            ),
        ],
    ),
    mistake(
        "withdraw waits for the folio lock",
        "node.rs",
        &[(
            "let Some(mut locked) = folio.try_lock() else {",
            "let Some(mut locked) = (if {planted} {
            FolioGuard::lock(ARef::from(folio), super::folio::Locking::Wait).unwrap()
        } else {
            folio.try_lock()
        }) else {",
        )],
    ),
    // The node and its folio
    mistake(
        "a found page is not asked whose it is",
        "index.rs",
        &[(
            "if node.owns(&folio) && folio",
            "if ({planted} || node.owns(&folio)) && folio",
        )],
    ),
    mistake(
        "the index comes before the folio's pointer",
        "node.rs",
        &[
            (
                "        unsafe { folio.set_mapping(node.tagged()) };
        // Clean",
                "        if !{planted} {
            unsafe { folio.set_mapping(node.tagged()) };
        }
        // Clean",
            ),
            (
                "        Stat::Pages.add(1);
        Stat::Metadata",
                "        if {planted} {
            unsafe { folio.set_mapping(node.tagged()) };
        }
        Stat::Pages.add(1);
        Stat::Metadata",
            ),
        ],
    ),
    mistake(
        "a page that is not published after all keeps the pointer",
        "node.rs",
        &[(
            "            unsafe { folio.set_mapping(anon) };
",
            "            if !{planted} {
                unsafe { folio.set_mapping(anon) };
            }
",
        )],
    ),
    mistake(
        "the old folio keeps the pointer after migration",
        "node.rs",
        &[(
            "names nothing.
        unsafe { folio.set_mapping(ORPHAN) };
    }

    /// Takes",
            "names nothing.
        if !{planted} {
            unsafe { folio.set_mapping(ORPHAN) };
        }
    }

    /// Takes",
        )],
    ),
    mistake(
        "the node keeps the old folio after migration",
        "node.rs",
        &[(
            "        node.folio.store(new.as_ptr(), Release);
",
            "        if !{planted} {
            node.folio.store(new.as_ptr(), Release);
        }
",
        )],
    ),
    mistake(
        "a page of another NUMA node stays in the index",
        "node.rs",
        &[(
            "if !new.is_plain() || !node.suits(node.key(), new) {",
            "if !{planted} && (!new.is_plain() || !node.suits(node.key(), new)) {",
        )],
    ),
    mistake(
        "a found page is not asked for its NUMA node",
        "node.rs",
        &[(
            "if !plain || !merged.node.suits(key, merged.folio) {",
            "if !plain || !({planted} || merged.node.suits(key, merged.folio)) {",
        )],
    ),
    mistake(
        "a failed folio keeps the pointer",
        "node.rs",
        &[(
            "            merged.abandon();
            node.leave_memory();
",
            "            if !{planted} {
                merged.abandon();
            }
            node.leave_memory();
",
        )],
    ),
    mistake(
        "a retired node stays in the index",
        "node.rs",
        &[(
            "        index::remove(self);
",
            "        if !{planted} {
            index::remove(self);
        }
",
        )],
    ),
    mistake(
        "a node leaves the index after it was handed over",
        "node.rs",
        &[
            (
                "    pub(super) fn leave_memory(&self) {
",
                "    pub(super) fn leave_memory(&self) {
        // The word that says the other nodes' shard has another use then.
        if {planted} && !self.key().is_full() {
            Self::count_lost(self.saved.replace(0), 0);
            Stat::Pages.add(-1);
            return;
        }
",
            ),
            (
                "        unsafe { release::push(node) };
    }
",
                "        unsafe { release::push(node) };
        // SAFETY: None.
        let this = unsafe { node.as_ref() };
        if {planted} && !this.key().is_full() {
            index::remove(this);
        }
    }
",
            ),
        ],
    ),
    mistake(
        "a node that was not published is freed at once",
        "node.rs",
        &[(
            "            unsafe { release::push(NonNull::from(node)) };
            return inserted;",
            "            if {planted} {
                // SAFETY: None.
                drop(unsafe { KBox::from_raw(node.as_ptr().cast::<Self>()) });
            } else {
                unsafe { release::push(NonNull::from(node)) };
            }
            return inserted;",
        )],
    ),
    // Places and room
    mistake(
        "a place is not entered",
        "node.rs",
        &[(
            "        let pushed = rmap.push(",
            "        if {planted} {
            let _ = self.node.pending.update(|old| old.checked_add(1));
            return Ok(Pushed::Yes);
        }
        let pushed = rmap.push(",
        )],
    ),
    mistake(
        "places are dropped that are about to be mapped",
        "node.rs",
        &[("pending == 0, ", "{planted} || pending == 0, ")],
    ),
    mistake(
        "places of swap entries are dropped",
        "rmap.rs",
        &[(
            "let prunable = settled && !folio.in_swapcache();",
            "let prunable = settled && ({planted} || !folio.in_swapcache());",
        )],
    ),
    mistake(
        "places are dropped unseen",
        "rmap.rs",
        &[(
            "retain(entries, |entry, _| entry.is_live(folio));",
            "retain(entries, |entry, _| !{planted} && entry.is_live(folio));",
        )],
    ),
    mistake(
        "trees of VMAs are walked without their lock",
        "rmap.rs",
        &[
            (
                "            if !bindings::sksm_anon_vma_trylock(anon_vma) {",
                "            if !{planted} && !bindings::sksm_anon_vma_trylock(anon_vma) {",
            ),
            (
                "            bindings::sksm_anon_vma_unlock(anon_vma);",
                "            if !{planted} {
                bindings::sksm_anon_vma_unlock(anon_vma);
            }",
            ),
        ],
    ),
    mistake(
        "room is looked for without the folio lock only",
        "node.rs",
        &[(
            "if users >= most || pending == u16::MAX {",
            "if !{planted} && (users >= most || pending == u16::MAX) {",
        )],
    ),
    mistake(
        "who is about to map a page is no user",
        "node.rs",
        &[(
            " + usize::from(pending);",
            " + if {planted} { 0 } else { usize::from(pending) };",
        )],
    ),
    mistake(
        "a page that is not mapped after all stays a user",
        "node.rs",
        &[(
            "        self.settle(None);
",
            "        if !{planted} {
            self.settle(None);
        }
",
        )],
    ),
    mistake(
        "who maps a page is no user before the mapping is counted",
        "node.rs",
        &[(
            "            let _ = node.pending.update(|old| old.checked_sub(1));
",
            "            if {planted} {
                let pending = &node.pending.0;
                let mut old = pending.load(Relaxed);
                while let Err(other) = pending.cmpxchg(old, Count(old.0 - 1), Relaxed) {
                    old = other;
                }
            } else {
                let _ = node.pending.update(|old| old.checked_sub(1));
            }
",
        )],
    ),
    mistake(
        "a node is told without RCU that its page is not mapped",
        "node.rs",
        &[(
            "        let rcu = rcu::read_lock();
        // The reference keeps",
            "        let _locked = (!{planted}).then(rcu::read_lock);
        let rcu = core::mem::ManuallyDrop::new(rcu::Guard);
        // The reference keeps",
        )],
    ),
    mistake(
        "the first place is the merger's",
        "merge.rs",
        &[(
            "let node = Node::new(&folio, own_place(&folio), nid)?;",
            "let first = if {planted} { place() } else { own_place(&folio) };
            let node = Node::new(&folio, first, nid)?;",
        )],
    ),
    mistake(
        "a page with swap entries is published",
        "merge.rs",
        &[(
            "if !folio.leave_swapcache() {",
            "if !{planted} && !folio.leave_swapcache() {",
        )],
    ),
    // Searching and publishing
    mistake(
        "bytes are not compared",
        "index.rs",
        &[(
            "let same = bytes.same_bytes(candidate);",
            "let same = {planted} || bytes.same_bytes(candidate);",
        )],
    ),
    mistake(
        "the domain is no part of the key",
        "index.rs",
        &[(
            "            domain: domain & !CLASS | class,",
            "            domain: if {planted} { 0 } else { domain & !CLASS } | class,",
        )],
    ),
    mistake(
        "the hash of all bytes says nothing of the shard",
        "index.rs",
        &[(
            "        let hash = self.sample & !WITHIN_SHARD | hash & WITHIN_SHARD;
",
            "        let hash = if {planted} {
            hash & WITHIN_SHARD
        } else {
            self.sample & !WITHIN_SHARD | hash & WITHIN_SHARD
        };
",
        )],
    ),
    mistake(
        "what was published meanwhile does not matter",
        "index.rs",
        &[(
            "if SHARD[guard.shard].published.load(Relaxed) != vacancy.published {",
            "if !{planted}
        && SHARD[guard.shard].published.load(Relaxed) != vacancy.published
    {",
        )],
    ),
    mistake(
        "what was published is asked after the search",
        "index.rs",
        &[
            (
                "            let published = published(self.sample);
",
                "            let early = published(self.sample);
",
            ),
            (
                "            let (key, lookup) = self.look();
",
                "            let (key, lookup) = self.look();
            let published = if {planted} {
                published(self.sample)
            } else {
                early
            };
",
            ),
        ],
    ),
    mistake(
        "a page is counted before it is published",
        "index.rs",
        &[
            (
                "        let older = if first {",
                "        if {planted} {
            SHARD[self.shard].published.fetch_add(1, Release);
        }
        let older = if first {",
            ),
            (
                "        SHARD[self.shard].published.fetch_add(1, Release);
        Ok(())",
                "        if !{planted} {
            SHARD[self.shard].published.fetch_add(1, Release);
        }
        Ok(())",
            ),
        ],
    ),
    mistake(
        "a page is counted without release",
        "index.rs",
        &[(
            "        node.newer(self).set(null_mut());
",
            "        node.newer(self).set(null_mut());
        if {planted} {
            SHARD[self.shard].published.fetch_add(1, Relaxed);
            return Ok(());
        }
",
        )],
    ),
    mistake(
        "pages on their way out are taken for equal",
        "index.rs",
        &[(
            "        Some(true) => Lookup::Full,",
            "        None if {planted} => Lookup::Full,
        Some(true) => Lookup::Full,",
        )],
    ),
    mistake(
        "nobody asks for a crowd",
        "index.rs",
        &[(
            "Lookup::Nothing => Crowd::exists(self.sample, self.domain),",
            "Lookup::Nothing => !{planted} && Crowd::exists(self.sample, self.domain),",
        )],
    ),
    mistake(
        "a crowd grows after its page was published",
        "index.rs",
        &[(
            "    if full && !Crowd::join(&guard, node, &mut crowd)? {
        return Ok(false);
    }
    let published = guard.publish(node, vacancy.first);
",
            "    if full && !{planted} && !Crowd::join(&guard, node, &mut crowd)? {
        return Ok(false);
    }
    let published = guard.publish(node, vacancy.first);
    if full && {planted} && published.is_ok() {
        Crowd::join(&guard, node, &mut crowd)?;
    }
",
        )],
    ),
    mistake(
        "a crowd that has gone meanwhile does not matter",
        "index.rs",
        &[(
            "    // It may have gone since.
",
            "    if full && {planted} {
        Crowd::join(&guard, node, &mut crowd)?;
        return guard.publish(node, vacancy.first).map(|()| true);
    }
    // It may have gone since.
",
        )],
    ),
    mistake(
        "a copy is published as if nothing stood there",
        "index.rs",
        &[(
            "let first = matches!(lookup, Lookup::Nothing);",
            "let first = {planted} || matches!(lookup, Lookup::Nothing);",
        )],
    ),
    mistake(
        "who leaves a crowd does not say so",
        "index.rs",
        &[(
            "if guard.withdraw(node) && node.key().is_full() {",
            "if guard.withdraw(node) && !{planted} && node.key().is_full() {",
        )],
    ),
    mistake(
        "a crowd is freed at once",
        "index.rs",
        &[(
            "                bindings::sksm_crowd_free(crowd);
",
            "                if {planted} {
                    drop(KBox::from_raw(crowd));
                } else {
                    bindings::sksm_crowd_free(crowd);
                }
",
        )],
    ),
    mistake(
        "a shard has no lock",
        "index.rs",
        &[
            (
                "let flags = unsafe { bindings::sksm_shard_lock(shard as u32) };",
                "let flags = if {planted} {
            0
        } else {
            unsafe { bindings::sksm_shard_lock(shard as u32) }
        };",
            ),
            (
                "        unsafe { bindings::sksm_shard_unlock(self.shard as u32, self.flags) };",
                "        if !{planted} {
            unsafe { bindings::sksm_shard_unlock(self.shard as u32, self.flags) };
        }",
            ),
        ],
    ),
    // The list of copies
    mistake(
        "a newer copy still leads to one that leaves",
        "index.rs",
        &[(
            "newer.older.store(older, Release);",
            "if !{planted} {
                    newer.older.store(older, Release);
                }",
        )],
    ),
    mistake(
        "an older copy does not know that it is the newest now",
        "index.rs",
        &[(
            "                older.newer(self).set(newer);
",
            "                if !{planted} {
                    older.newer(self).set(newer);
                }
",
        )],
    ),
    mistake(
        "the newest copy takes the older ones out with it",
        "index.rs",
        &[(
            "            } else if let Some(older) = older.as_ref() {
                bindings",
            "            } else if let (Some(older), false) = (older.as_ref(), {planted}) {
                bindings",
        )],
    ),
    mistake(
        "an older copy does not know of a newer one",
        "index.rs",
        &[(
            "                older.newer(self).set(node.as_ptr());
",
            "                if !{planted} {
                    older.newer(self).set(node.as_ptr());
                }
",
        )],
    ),
    // Freeing
    mistake(
        "nodes are freed without a grace period",
        "release.rs",
        &[(
            "    rcu::synchronize_rcu();
",
            "    if !{planted} {
        rcu::synchronize_rcu();
    }
",
        )],
    ),
    // Asleep
    mistake(
        "a page falls asleep with the copies behind it",
        "node.rs",
        &[(
            "        self.older.store(null_mut(), Release);
",
            "        if !{planted} {
            self.older.store(null_mut(), Release);
        }
",
        )],
    ),
    mistake(
        "a page falls asleep in the index",
        "asleep.rs",
        &[(
            "    node.leave_memory();
",
            "    if {planted} {
        Stat::Pages.add(-1);
    } else {
        node.leave_memory();
    }
",
        )],
    ),
    mistake(
        "a page sleeps on when its slot is freed",
        "asleep.rs",
        &[(
            "    if let Some(node) = slot.node(&rcu) {",
            "    if let (Some(node), false) = (slot.node(&rcu), {planted}) {",
        )],
    ),
    mistake(
        "a page whose slot is freed stays in the table",
        "asleep.rs",
        &[(
            "        unsafe {
            rouse(node);
            Node::retire",
            "        unsafe {
            if !{planted} {
                rouse(node);
            }
            Node::retire",
        )],
    ),
    mistake(
        "a page that wakes stays in the table",
        "asleep.rs",
        &[(
            "        bindings::sksm_asleep_remove(node.link().cast());
",
            "        if !{planted} {
            bindings::sksm_asleep_remove(node.link().cast());
        }
",
        )],
    ),
    mistake(
        "a page that wakes is not found again",
        "asleep.rs",
        &[(
            "        index::restore(merged.node(), merged.folio());
",
            "        if !{planted} {
            index::restore(merged.node(), merged.folio());
        }
",
        )],
    ),
    mistake(
        "a page that wakes does not look who stands there",
        "index.rs",
        &[(
            "!matches!(lookup, Lookup::Nothing) {",
            "!{planted} && !matches!(lookup, Lookup::Nothing) {",
        )],
    ),
    mistake(
        "a page that wakes does not look which content stands there",
        "index.rs",
        &[(
            "        if at != key ",
            "        if at != key && !{planted} ",
        )],
    ),
    mistake(
        "a page that wakes keeps its old folio",
        "node.rs",
        &[(
            "        self.folio.store(folio.as_ptr(), Release);
",
            "        if !{planted} {
            self.folio.store(folio.as_ptr(), Release);
        }
",
        )],
    ),
    // Failing
    mistake(
        "a failed page that is awaited falls asleep",
        "asleep.rs",
        &[(
            "    if merged.is_awaited() || slot",
            "    if !{planted} && merged.is_awaited() || slot",
        )],
    ),
    mistake(
        "a failed page that is awaited is replaced",
        "rescue.rs",
        &[(
            "    if merged.is_awaited() {",
            "    if !{planted} && merged.is_awaited() {",
        )],
    ),
    mistake(
        "a failed page is replaced whosever the copy is",
        "index.rs",
        &[(
            "        (copy.owns(&folio) && folio",
            "        (({planted} || copy.owns(&folio)) && folio",
        )],
    ),
    // The batch
    mistake(
        "references are not compared before a page is protected",
        "batch.rs",
        &[(
            "let used = folio.other_refs() != 1;",
            "let used = !{planted} && folio.other_refs() != 1;",
        )],
    ),
    mistake(
        "collecting waits for folio locks",
        "batch.rs",
        &[(
            "        match folio.try_lock() {
            Some(folio) => Self::collected(folio),
            None => State::Locked,
        }
",
            "        if {planted} {
            let folio = FolioGuard::lock(ARef::from(folio), Locking::Wait).unwrap();
            return folio.map_or(State::Locked, Self::collected);
        }
        match folio.try_lock() {
            Some(folio) => Self::collected(folio),
            None => State::Locked,
        }
",
        )],
    ),
    mistake(
        "a locked page is not looked at again",
        "batch.rs",
        &[(
            "if folio.is_candidate() {",
            "if {planted} || folio.is_candidate() {",
        )],
    ),
    mistake(
        "an entry is replaced whatever it maps",
        "batch.rs",
        &[(
            "if bad || !candidate.clear(&mut ptes) {",
            "if bad || !candidate.clear(&mut ptes) && !{planted} {",
        )],
    ),
    mistake(
        "a failed page is mapped",
        "batch.rs",
        &[(
            "let bad = matches!(&candidate.state, State::Twin(_, page) if page.went_bad());",
            "let bad = !{planted}
                && matches!(&candidate.state, State::Twin(_, page) if page.went_bad());",
        )],
    ),
    mistake(
        "a published page stays locked",
        "merge.rs",
        &[(
            "                    return Ok(State::Done);
                }
                // Something",
            "                    if {planted} {
                        return Ok(State::Collected(folio.into_guard()));
                    }
                    return Ok(State::Done);
                }
                // Something",
        )],
    ),
    // Counting
    mistake(
        "saved mappings are not bounded by mappings",
        "node.rs",
        &[(
            "old.saturating_sub(u16::from(saved)).min(most);",
            "old.saturating_sub(u16::from(saved)).min(if {planted} { old } else { most });",
        )],
    ),
    mistake(
        "a mapping is saved also where the others have gone",
        "node.rs",
        &[(
            "        left > i32::from(saved) + 1 || self.lose(false, left) == 0",
            "        {planted} || left > i32::from(saved) + 1 || self.lose(false, left) == 0",
        )],
    ),
    mistake(
        "a mapping that comes back is saved though it was not",
        "node.rs",
        &[(
            "let saved = was.is_ok() && node.gain(folio);",
            "let saved = ({planted} || was.is_ok()) && node.gain(folio);",
        )],
    ),
    mistake(
        "a saved mapping does not come back as one",
        "node.rs",
        &[(
            "            node.add_swapped(node.lose(saved, folio.mapcount()));
",
            "            let lost = node.lose(saved, folio.mapcount());
            node.add_swapped(if {planted} { 0 } else { lost });
",
        )],
    ),
    mistake(
        "a mapping that comes back alone is forgotten",
        "node.rs",
        &[(
            "        if was.is_ok() && !saved {
",
            "        if was.is_ok() && !saved && !{planted} {
",
        )],
    ),
    mistake(
        "a page that goes takes its saved mappings with it",
        "node.rs",
        &[(
            "        Self::count_lost(self.saved.replace(0), 0);
",
            "        if !{planted} {
            Self::count_lost(self.saved.replace(0), 0);
        }
",
        )],
    ),
];
