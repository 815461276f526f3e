//! What an edge reports of its devices and rules.
//!
//! That of a device is written twice: into the status of the Device, where KubeEdge had it until 1.22 and where `kubectl get devices` shows
//! it, and into the DeviceStatus of the same name, where KubeEdge has it since.

use proto::ResourceKey;
use serde_json::{Value, json};

use super::{Upstream, Verdict};
use crate::{
    cloudhub::authz::{self, Denied},
    edgecontroller::{
        api::{self, Failure, Patch},
        claim::Claim,
        objects::{DEVICE, DEVICE_STATUS, KINDS, Owned, RULE},
    },
};

const API_VERSION: &str = "devices.kubeedge.io/v1beta1";
const RULE_API_VERSION: &str = "devices.skerry.io/v1alpha1";

impl Upstream {
    pub(super) async fn device_status(
        &self,
        node: &str,
        key: &ResourceKey,
        (uid, status, print): (&str, &Value, u64),
        claim: &Claim,
        anew: bool,
    ) -> Result<Verdict, Failure> {
        let version = match self.check_device(node, key, uid, anew).await? {
            Ok(version) => version,
            Err(denied) => return Ok(denied.into()),
        };
        let mut verdict = Verdict::Unchanged;
        if anew || !self.has(key, print, claim) {
            let version = claim.newest(key, version);
            claim.confirm(&self.client, &self.index, node, key, version).await?;
            let (api_version, kind) =
                if key.kind() == RULE { (RULE_API_VERSION, "DeviceRule") } else { (API_VERSION, "Device") };
            let patch = json!({
                "apiVersion": api_version,
                "kind": kind,
                // With the uid a device of the same name that was created since is not touched.
                "metadata": {"name": key.name(), "namespace": key.namespace(), "uid": uid,
                    "resourceVersion": version.to_string()},
                "status": status,
            });
            match api::patch(&self.client, &format!("{}/status", path(key)), Patch::Apply, &patch).await {
                Ok(answer) => claim.wrote(key, answer.resource_version()?),
                Err(Failure::Refused { code: 404, .. }) => return Ok(Denied::DeviceGone.into()),
                Err(failure) => return Err(failure),
            }
            verdict = Verdict::Taken;
        }
        if key.kind() == RULE {
            return Ok(verdict);
        }
        let Ok(copy) = ResourceKey::new(DEVICE_STATUS, key.namespace(), key.name()) else {
            return Ok(Verdict::Refused("the device's name is too long for a DeviceStatus".to_owned()));
        };
        if anew || !self.has(&copy, print, claim) {
            self.write_copy(node, &copy, uid, status, claim, anew).await?;
            verdict = Verdict::Taken;
        }
        Ok(verdict)
    }

    /// Whether the object's status is there already, in the newest version that there is of this session.
    fn has(&self, key: &ResourceKey, print: u64, claim: &Claim) -> bool {
        self.index
            .status(key)
            .is_some_and(|(held, cached)| held == Some(print) && claim.newest(key, cached) == cached)
    }

    async fn write_copy(
        &self,
        node: &str,
        key: &ResourceKey,
        uid: &str,
        status: &Value,
        claim: &Claim,
        anew: bool,
    ) -> Result<(), Failure> {
        let path = path(key);
        let mut version = self.index.status(key).map(|(_, version)| version);
        if anew || version.is_none() {
            version = match api::read(&self.client, &path).await {
                Ok(there) => Some(there.resource_version()?),
                Err(Failure::Refused { code: 404, .. }) => None,
                Err(failure) => return Err(failure),
            };
        }
        let mut metadata = json!({"name": key.name(), "namespace": key.namespace(), "ownerReferences": [{
            "apiVersion": API_VERSION, "kind": "Device", "name": key.name(), "uid": uid, "controller": true,
        }]});
        if let Some(version) = version {
            let version = claim.newest(key, version);
            claim.confirm(&self.client, &self.index, node, key, version).await?;
            metadata["resourceVersion"] = version.to_string().into();
        }
        let copy = json!({"apiVersion": API_VERSION, "kind": "DeviceStatus", "metadata": metadata, "status": status});
        let written = api::patch(&self.client, &path, Patch::Apply, &copy).await?;
        claim.wrote(key, written.resource_version()?);
        Ok(())
    }

    /// As [`check_pod`](Self::check_pod).
    pub(super) async fn check_device(
        &self,
        node: &str,
        key: &ResourceKey,
        uid: &str,
        anew: bool,
    ) -> Result<Result<u64, Denied>, Failure> {
        let check = |device: &Owned| authz::may_report_device(node, device, uid);
        if !anew
            && let Some((device, version)) = self.index.owned(key)
            && check(&device).is_ok()
        {
            return Ok(Ok(version));
        }
        let object = match api::get(&self.client, &path(key)).await {
            Ok(object) => object,
            Err(Failure::Refused { code: 404, .. }) => return Ok(Err(Denied::DeviceGone)),
            Err(failure) => return Err(failure),
        };
        let kind = KINDS.iter().find(|kind| kind.key == key.kind());
        let taken = kind.and_then(|kind| kind.take(&object.to_string()).ok());
        let Some((device, taken)) = taken.and_then(|taken| Some((Owned::of(&taken.facts)?, taken))) else {
            return Ok(Err(Denied::OtherNodesDevice));
        };
        Ok(check(&device).map(|()| taken.object.version.resource_version))
    }
}

fn path(key: &ResourceKey) -> String {
    let (api_version, plural) = match key.kind() {
        DEVICE => (API_VERSION, "devices"),
        RULE => (RULE_API_VERSION, "devicerules"),
        _ => (API_VERSION, "devicestatuses"),
    };
    format!("/apis/{api_version}/namespaces/{}/{plural}/{}", key.namespace(), key.name())
}
