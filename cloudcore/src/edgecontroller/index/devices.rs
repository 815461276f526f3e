//! Whom devices are with, and whom they are to be with.

use std::sync::{Arc, atomic::Ordering};

use proto::ResourceKey;

use super::{
    super::{
        key_set::KeySet,
        objects::{DeviceFacts, Facts, Placement},
        placement,
    },
    Index, State,
};

impl Index {
    /// Devices that may have to be placed.
    pub fn unplaced(&self) -> &Arc<KeySet> {
        &self.queues.unplaced
    }

    /// Whom a device is to be given to now: `Some(None)` is nobody. `None` where nothing is to be done, or not yet. With the device's
    /// version.
    pub fn placement(&self, key: &ResourceKey) -> Option<(Option<Box<str>>, u64)> {
        let state = self.read();
        let cached = state.objects.get(key)?;
        let Facts::Device(device) = &cached.facts else { return None };
        // Before all nodes are known, none is gone.
        if !state.kinds["Node"].listed {
            return None;
        }
        let is_there = |node: &str| state.node(node).is_some();
        let is_free = device
            .holder
            .as_ref()
            .is_none_or(|holder| !is_there(holder) || state.let_go.get(key).is_some_and(|by| by == holder));
        let wanted = match &device.wanted {
            Placement::Nowhere => None,
            Placement::Node(node) => Some(node.clone()),
            Placement::Selected(_) if device.holder.as_deref().is_some_and(is_there) => return None,
            // One that fits none yet waits for one.
            Placement::Selected(selector) => Some(placement::choose(selector, state.edge_nodes())?),
        };
        (is_free && wanted != device.holder).then_some((wanted, cached.object.version.resource_version))
    }

    /// Devices that this node is to give up.
    pub fn leaving(&self, node: &str) -> Vec<ResourceKey> {
        if self.leaving.load(Ordering::Relaxed) == 0 {
            return Vec::new();
        }
        let state = self.read();
        let is_its = |key: &&ResourceKey| {
            let facts = state.objects.get(*key).map(|cached| &cached.facts);
            let holder =
                if let Some(Facts::Device(device)) = facts { device.holder.as_deref() } else { None };
            holder == Some(node) && !state.let_go.contains_key(*key)
        };
        state.displaced.iter().filter(is_its).cloned().collect()
    }

    /// The node is known to have the device no more.
    pub fn let_go(&self, node: &str, key: &ResourceKey) {
        let mut state = self.write();
        if state.displaced.contains(key) {
            state.let_go.insert(key.clone(), node.into());
            self.queues.unplaced.mark(key);
        }
    }
}

impl State {
    /// With their labels.
    fn edge_nodes(&self) -> impl Iterator<Item = placement::Candidate> {
        self.objects.iter().filter_map(|(key, cached)| match &cached.facts {
            Facts::Node(node) if node.edge => Some(placement::Candidate::new(
                key.name(),
                &cached.object.bytes,
                node.ready.as_deref() == Some("True"),
            )),
            _ => None,
        })
    }

    pub(super) fn device_changed(&mut self, key: &ResourceKey, now: &DeviceFacts, unplaced: &KeySet) {
        if self.let_go.get(key).is_some_and(|by| now.holder.as_ref() != Some(by)) {
            self.let_go.remove(key);
        }
        if now.is_displaced() {
            self.displaced.insert(key.clone());
            // Its sessions see to it that they have it no more.
            if let Some(view) = now.holder.as_ref().and_then(|holder| self.nodes.get(&**holder)) {
                view.mark(key);
            }
        } else {
            self.displaced.remove(key);
            self.let_go.remove(key);
        }
        unplaced.mark(key);
    }

    pub(super) fn look_at_displaced(&self, unplaced: &KeySet) {
        for key in &self.displaced {
            unplaced.mark(key);
        }
    }
}
