//! The body of the steps' benches: an `incoming_event` of a given size.

/// An `incoming_event` of about this many bytes.
pub fn body(bytes: usize) -> String {
    let body = |text: &str| {
        format!(
            r#"{{"webhook_id":"7b2f4b1e-2c3d-4e5f-8a9b-0c1d2e3f4a5b","secret_key":"k-0123456789","action":"incoming_event","organization_id":"0f6e2d4c-1b3a-4958-8776-655443322110","payload":{{"chat_id":"QA1ZB2XC3V","thread_id":"QB4NM5KL6J","event":{{"id":"QB4NM5KL6J_7","type":"message","text":"{text}","author_id":"ada@example.com","created_at":"2026-11-22T10:00:00.123456Z","visibility":"all","properties":{{}}}}}},"additional_data":{{}}}}"#
        )
    };
    let words = "so it goes with \\\"quotes\\\" and words ";
    let missing = bytes.saturating_sub(body("").len());
    body(&words.repeat(missing / words.len() + 1)[..missing / words.len() * words.len()])
}
