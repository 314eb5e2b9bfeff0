//! What the installation page says. All of it is ours: nothing of a query, and nothing that LiveChat has answered, is shown.

use crate::livechat::Reason;
use crate::outcome::PageEnd;

/// A title, in which `{app}` stands for the app's name, and the paragraphs below it.
#[derive(Debug)]
pub struct Text {
    pub title: &'static str,
    pub lines: &'static [&'static str],
}

const fn text(title: &'static str, lines: &'static [&'static str]) -> Text {
    Text { title, lines }
}

const AGAIN: &str = "Go back to LiveChat and press Install again.";
const LOG: &str = "The operator of the relay finds the reason in its log.";
const TWO_MINUTES: &str = "Changes take effect within two minutes.";

impl Text {
    /// `webhooks`: whether LiveChat sends those of the license, where that is known. As of the installation, because the page may be reloaded
    /// later.
    pub const fn of_installed(webhooks: Option<bool>, is_enabled_now: bool) -> Self {
        const OFF: &str = "When it was installed, webhooks of this license were off: LiveChat sends none until the operator of the relay enables them.";
        text(
            "The app “{app}” is installed",
            match (webhooks, is_enabled_now) {
                (Some(true), true) => {
                    &["Webhooks of this license were off. The installation has enabled them.", TWO_MINUTES]
                }
                (Some(true), false) => &["When it was installed, webhooks of this license were on.", TWO_MINUTES],
                (Some(false), _) => &[OFF],
                (None, _) => {
                    &["When it was installed, it could not be found out whether webhooks of this license were on."]
                }
            },
        )
    }

    pub const fn of_reason(reason: Reason) -> Self {
        const NOT_INSTALLED: &str = "The app was not installed";
        match reason {
            Reason::Denied => text(NOT_INSTALLED, &["The access that it requests was refused.", AGAIN]),
            Reason::Scope => text(
                NOT_INSTALLED,
                &[
                    "This account may not grant what the app asks for. An administrator of the organization must install it.",
                ],
            ),
            Reason::Client => text(
                "LiveChat does not know this app",
                &[
                    "The Client ID or the redirect whitelist in LiveChat's Developer Console differs from the relay's configuration.",
                    "The address of this page must be in the whitelist.",
                ],
            ),
            Reason::TooManyRedirects => {
                text("Too many attempts", &["LiveChat allows three within half a minute. Wait a little.", AGAIN])
            }
            Reason::SignIn => {
                text("You are not signed in", &["Sign in to LiveChat with an account that may install apps.", AGAIN])
            }
            Reason::Server => {
                text("LiveChat has trouble", &["It could not finish the installation. Wait some minutes.", AGAIN])
            }
            Reason::Unknown => text(NOT_INSTALLED, &["LiveChat reports an error that the relay does not know.", AGAIN]),
        }
    }

    /// For all others.
    pub const fn of_end(end: PageEnd) -> Self {
        match end {
            PageEnd::NoCode => text(
                "There is nothing to install",
                &["LiveChat opens this page with a code, and there is none, or one that cannot be read.", AGAIN],
            ),
            PageEnd::CodeRefused => text(
                "LiveChat did not accept the code",
                &[
                    "It has expired, or it was used before. A code is valid for a few minutes.",
                    AGAIN,
                    "If that does not help, the app's client secret or its redirect whitelist differs from the relay's configuration.",
                ],
            ),
            PageEnd::NotAllowed => text(
                "Your organization may not install this app",
                &[
                    "The relay accepts installations of the organizations that its operator has listed, and yours is not among them.",
                    "It has kept no access to your account.",
                ],
            ),
            PageEnd::MissingScopes => text(
                "Scopes are missing",
                &[
                    "The app was not installed, because LiveChat did not grant all that it needs. Add these scopes to the app's block App Authorization in LiveChat's Developer Console, and install it again:",
                ],
            ),
            PageEnd::TooMany => text("Too many attempts", &["Wait a minute, and try again."]),
            PageEnd::Busy => text(
                "One moment, please",
                &["This installation, or others, are under way. Try again in a few seconds."],
            ),
            PageEnd::Unreachable => text(
                "LiveChat cannot be reached",
                &[
                    "The relay could not confirm the installation with LiveChat. Try again in a few seconds.",
                    "If LiveChat then does not accept the code, go back and press Install again.",
                ],
            ),
            PageEnd::NotDurable => text(
                "Not finished yet",
                &[
                    "LiveChat has confirmed the installation, but the relay could not store it.",
                    "Try again in a few seconds, within a quarter of an hour: it continues where it was.",
                ],
            ),
            PageEnd::Misconfigured => text(
                "The relay is not set up for this app",
                &["LiveChat does not know the app as the relay is configured.", LOG],
            ),
            PageEnd::Shown
            | PageEnd::Installed
            | PageEnd::SignedIn
            | PageEnd::SignedOut
            | PageEnd::Declined
            | PageEnd::CodeUsed
            | PageEnd::Unauthorized
            | PageEnd::Panic => text("Something went wrong", &["This is a fault of the relay.", LOG]),
        }
    }
}
