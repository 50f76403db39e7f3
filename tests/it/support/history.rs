//! What clients asked and were told, written down while many of them run at once.

use super::http::{Answer, Client, checkout_target};
use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How a request ended for its client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// 200: the hold's code, or the purchased item's id.
    Granted(String),
    /// `already_purchased`, with the item's id.
    Already(String),
    /// Another refusal: the status and the error's word. Nothing happened.
    Refused(u16, String),
    /// 503, or no answer at all: whether it happened is not known.
    Lost(String),
}

/// A checkout and its answer.
#[derive(Clone, Debug)]
pub struct Checkout {
    /// Who.
    pub user: String,
    /// What.
    pub item: String,
    /// The answer.
    pub told: Told,
    /// Unix seconds from a granted answer, otherwise 0.
    pub expires_at: u64,
}

/// A purchase and its answer.
#[derive(Clone, Debug)]
pub struct Redeemed {
    /// What it was tried with.
    pub code: String,
    /// The answer.
    pub told: Told,
    /// When it was answered, unix seconds.
    pub at: f64,
}

/// Everything that was asked and told.
#[derive(Default)]
pub struct History {
    checkouts: Mutex<Vec<Checkout>>,
    purchases: Mutex<Vec<Redeemed>>,
    granted: AtomicU64,
}

impl History {
    /// The checkouts, in the order of their answers.
    pub fn checkouts(&self) -> Vec<Checkout> {
        self.checkouts.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// The purchases, in the order of their answers.
    pub fn purchases(&self) -> Vec<Redeemed> {
        self.purchases.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// How many checkouts and purchases were granted until now.
    pub fn granted(&self) -> u64 {
        self.granted.load(Ordering::Relaxed)
    }

    /// The codes of all granted checkouts.
    pub fn codes(&self) -> Vec<String> {
        let granted = |c: Checkout| match c.told {
            Told::Granted(code) => Some(code),
            _ => None,
        };
        self.checkouts().into_iter().filter_map(granted).collect()
    }

    /// All refusals and losses as words, for a test to look for what it does not expect.
    pub fn words(&self) -> Vec<String> {
        let word = |told: Told| match told {
            Told::Refused(status, error) => Some(format!("{status} {error}")),
            Told::Lost(why) => Some(format!("lost: {why}")),
            Told::Granted(_) | Told::Already(_) => None,
        };
        let checkouts = self.checkouts().into_iter().filter_map(|c| word(c.told));
        checkouts.chain(self.purchases().into_iter().filter_map(|p| word(p.told))).collect()
    }

    /// Writes a checkout down.
    pub fn add_checkout(&self, checkout: Checkout) {
        self.granted.fetch_add(u64::from(matches!(checkout.told, Told::Granted(_))), Ordering::Relaxed);
        self.checkouts.lock().unwrap_or_else(|e| e.into_inner()).push(checkout);
    }

    /// Writes a purchase down.
    pub fn add_purchase(&self, purchase: Redeemed) {
        self.granted.fetch_add(u64::from(matches!(purchase.told, Told::Granted(_))), Ordering::Relaxed);
        self.purchases.lock().unwrap_or_else(|e| e.into_inner()).push(purchase);
    }
}

/// A client whose requests and answers are written down.
pub struct Shopper<'a> {
    client: Client,
    history: &'a History,
    /// Which of the concurrent shoppers it is, from 0.
    pub number: usize,
    /// How often its step was called before.
    pub round: u64,
    stop: &'a AtomicBool,
}

impl Shopper<'_> {
    /// Checks out.
    pub fn checkout(&mut self, user: &str, item: &str) -> Told {
        let answer = self.client.send_request("POST", &checkout_target(user, item));
        let expires_at = answer.as_ref().ok().filter(|a| a.status == 200).map(|a| a.json()["expires_at"].as_u64());
        let told = told(answer, "code");
        self.history.add_checkout(Checkout {
            user: user.to_owned(),
            item: item.to_owned(),
            told: told.clone(),
            expires_at: expires_at.flatten().unwrap_or_default(),
        });
        told
    }

    /// Purchases.
    pub fn purchase(&mut self, code: &str) -> Told {
        let told = told(self.client.send_request("POST", &format!("/purchase?code={code}")), "item_id");
        let at = super::clock::now();
        self.history.add_purchase(Redeemed { code: code.to_owned(), told: told.clone(), at });
        told
    }

    /// Lets all shoppers of this load stop after their current step.
    pub fn stop_all(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn told(answer: io::Result<Answer>, field: &str) -> Told {
    let answer = match answer {
        Ok(answer) => answer,
        Err(e) => return Told::Lost(e.to_string()),
    };
    match (answer.status, answer.error().as_str()) {
        (200, _) => Told::Granted(answer.field(field)),
        (409, "already_purchased") => Told::Already(answer.field(field)),
        (503, error) => Told::Lost(format!("503 {error}")),
        (status, error) => Told::Refused(status, error.to_owned()),
    }
}

/// Drives `shoppers` concurrent clients, each with a connection of its own to one of `addrs`, calling `step` until it
/// returns false or a caller has called [`Shopper::stop_all`]. Meanwhile `beside` runs on the caller's thread.
pub fn load(
    addrs: &[SocketAddr],
    shoppers: usize,
    history: &History,
    step: impl Fn(&mut Shopper<'_>) -> bool + Sync,
    beside: impl FnOnce(&AtomicBool),
) {
    let stop = AtomicBool::new(false);
    let (stop, step) = (&stop, &step);
    // If `beside` panics, the scope would wait for shoppers that are never stopped.
    struct StopAtEnd<'a>(Option<&'a AtomicBool>);
    impl Drop for StopAtEnd<'_> {
        fn drop(&mut self) {
            if let (Some(stop), true) = (self.0, std::thread::panicking()) {
                stop.store(true, Ordering::Relaxed);
            }
        }
    }
    std::thread::scope(|scope| {
        for (number, addr) in addrs.iter().cycle().take(shoppers).enumerate() {
            scope.spawn(move || {
                let _guard = StopAtEnd(Some(stop));
                let mut shopper = Shopper { client: Client::new(*addr), history, number, round: 0, stop };
                while !stop.load(Ordering::Relaxed) && step(&mut shopper) {
                    shopper.round += 1;
                }
            });
        }
        let _guard = StopAtEnd(Some(stop));
        beside(stop);
    });
}
