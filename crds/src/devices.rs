//! Devices and their models, group `devices.kubeedge.io`.

/// The CustomResourceDefinitions of all kinds here.
pub fn custom_resource_definitions() -> Vec<serde_json::Value> {
    Vec::new()
}
